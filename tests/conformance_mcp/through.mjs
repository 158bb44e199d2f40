// Puts a gateway before the client: declares the suite's server as a remote one at a running perch, and
// runs the client against it there.
//
// through.mjs DIRECTORY GATEWAY CLIENT PACKAGES URL: DIRECTORY is perch's, GATEWAY the base URL of its gateway.

import { spawnSync } from "node:child_process";

const [directory, gateway, client, packages, url] = process.argv.slice(2);
const name = `s-${new URL(url).port}`;
const object = {
  apiVersion: "perch.dev/v1alpha1",
  kind: "McpServer",
  metadata: { name },
  spec: { remote: { url }, transport: { type: "StreamableHttp" } },
};
const env = { ...process.env, HOME: directory, KUBECONFIG: `${directory}/kubeconfig` };
const kubectl = process.env.PERCH_TEST_KUBECTL ?? "kubectl";
const run = (args, input) => spawnSync(kubectl, args, { env, input, stdio: ["pipe", "inherit", "inherit"] });
if (run(["apply", "-f", "-"], JSON.stringify(object)).status !== 0) process.exit(1);
const there = `${gateway}/default/${name}/mcp`;
for (;;) {
  const answer = await fetch(there, { headers: { "Mcp-Session-Id": "none" } });
  if (!(await answer.text()).includes("there is no server")) break;
}
const done = spawnSync(process.execPath, [client, packages, there], { stdio: "inherit" });
run(["delete", "mcpserver", name, "--wait=false"]);
process.exit(done.status);
