// Puts a gateway before the client: declares the suite's server as a remote one at a perch of its own, and
// runs the client against it there. When perch ends, its connections to the suite's server do, for which
// the suite waits.
//
// through.mjs PERCH CLIENT PACKAGES URL

import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const [perch, client, packages, url] = process.argv.slice(2);
const scratch = mkdtempSync(join(tmpdir(), "perch-"));
const file = join(scratch, "server.json");
const server = {
  apiVersion: "perch.dev/v1alpha1",
  kind: "McpServer",
  metadata: { name: "suite" },
  spec: { remote: { url }, transport: { type: "StreamableHttp" } },
};
writeFileSync(file, JSON.stringify(server));
const addresses = ["--api-addr", "127.0.0.1:0", "--gateway-addr", "127.0.0.1:0"];
const options = ["--runtime", "process", "--data-dir", join(scratch, "data"), "--apply", file];
const up = spawn(perch, ["up", ...addresses, ...options], { stdio: ["ignore", "pipe", "inherit"] });
const ended = new Promise((resolve) => up.once("exit", resolve));
let gateway;
for await (const line of createInterface({ input: up.stdout })) {
  gateway = line.match(/^Gateway +(\S+)/)?.[1];
  if (gateway) break;
}
up.stdout.resume();
const there = `${gateway}/default/suite/mcp`;
for (;;) {
  const answer = await fetch(there, { headers: { "Mcp-Session-Id": "none" } });
  if (!(await answer.text()).includes("there is no server")) break;
}
const done = spawnSync(process.execPath, [client, packages, there], { stdio: "inherit" });
up.kill();
await ended;
rmSync(scratch, { recursive: true });
process.exit(done.status);
