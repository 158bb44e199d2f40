// The official TypeScript client in front of several servers.
//
// client.mjs legacy|modern PACKAGES <SERVERS: reads a JSON list of {name, url, tool, arguments, full} from
// standard input, does what a user's client does with each, and prints a JSON line of what it saw. The
// legacy client is @modelcontextprotocol/sdk, the modern one @modelcontextprotocol/client; PACKAGES is the
// directory in which they are installed.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const [era, packages] = process.argv.slice(2);
const require = createRequire(`${packages}/`);
const info = { name: "test", version: "0" };
const answer = (seen) => async (request) => {
  seen.question = request.params.message;
  return { action: "accept", content: { username: "dana", email: "d@example.com" } };
};

async function legacy(server, seen) {
  const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
  const { StreamableHTTPClientTransport } = require("@modelcontextprotocol/sdk/client/streamableHttp.js");
  const { ElicitRequestSchema } = require("@modelcontextprotocol/sdk/types.js");
  const client = new Client(info, { capabilities: { elicitation: {} } });
  client.setRequestHandler(ElicitRequestSchema, answer(seen));
  const transport = new StreamableHTTPClientTransport(new URL(server.url));
  await client.connect(transport);
  seen.version = transport.protocolVersion;
  await visit(client, server, seen, (call, options) => client.callTool(call, undefined, options));
  await transport.terminateSession();
  await client.close();
}

async function modern(server, seen) {
  const { Client, StreamableHTTPClientTransport } = require("@modelcontextprotocol/client");
  const client = new Client(info, { capabilities: { elicitation: {} }, versionNegotiation: { mode: "auto" } });
  client.setRequestHandler("elicitation/create", answer(seen));
  await client.connect(new StreamableHTTPClientTransport(new URL(server.url)));
  seen.version = client.getNegotiatedProtocolVersion();
  await visit(client, server, seen, (call, options) => client.callTool(call, options));
  await client.close();
}

// What both clients do alike.
async function visit(client, server, seen, call) {
  const text = (result) => result.content.map((part) => part.text ?? "").join("\n");
  const ask = (name, args, options) => call({ name, arguments: args }, options);
  seen.tools = (await client.listTools()).tools.map((tool) => tool.name);
  seen.text = text(await ask(server.tool, server.arguments));
  if (!server.full) return;
  seen.prompt = (await client.getPrompt({ name: "test_simple_prompt" })).messages[0].role;
  seen.resource = Boolean((await client.readResource({ uri: "test://static-text" })).contents[0].text);
  const completed = await client.complete({
    ref: { type: "ref/prompt", name: "p" },
    argument: { name: "a", value: "pari" },
  });
  seen.completion = completed.completion.values;
  seen.progress = [];
  await ask("test_tool_with_progress", {}, { onprogress: (told) => seen.progress.push(told.progress) });
  seen.elicited = text(await ask("test_elicitation", { message: "Who are you?" }));
  seen.failed = (await ask("test_error_handling", {})).isError;
  try {
    await ask("no_such_tool", {});
    seen.unknown = "no error";
  } catch (error) {
    seen.unknown = error.code;
  }
}

for (const server of JSON.parse(readFileSync(0, "utf8"))) {
  const seen = { name: server.name };
  await { legacy, modern }[era](server, seen);
  console.log(JSON.stringify(seen));
}
