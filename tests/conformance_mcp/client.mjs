// The official TypeScript client, as the conformance suite asks a client to behave.
//
// client.mjs PACKAGES URL: connects to URL with the client of the era that the suite names, lists what
// there is, and calls what the scenario is about. PACKAGES is the directory with the clients.

import { createRequire } from "node:module";

const [packages, url] = process.argv.slice(2);
const require = createRequire(`${packages}/`);
const scenario = process.env.MCP_CONFORMANCE_SCENARIO;
const modern = process.env.MCP_CONFORMANCE_PROTOCOL_VERSION === "2026-07-28";
const context = JSON.parse(process.env.MCP_CONFORMANCE_CONTEXT ?? "{}");
const info = { name: "test", version: "0" };
const capabilities = { elicitation: { form: { applyDefaults: true } } };
const accept = async () => ({ action: "accept", content: modern ? { confirmed: true, name: "dana" } : {} });

async function connect() {
  if (modern) {
    const { Client, StreamableHTTPClientTransport } = require("@modelcontextprotocol/client");
    const client = new Client(info, { capabilities, versionNegotiation: { mode: "auto" } });
    client.setRequestHandler("elicitation/create", accept);
    await client.connect(new StreamableHTTPClientTransport(new URL(url)));
    return client;
  }
  const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
  const { StreamableHTTPClientTransport } = require("@modelcontextprotocol/sdk/client/streamableHttp.js");
  const { ElicitRequestSchema } = require("@modelcontextprotocol/sdk/types.js");
  const client = new Client(info, { capabilities });
  client.setRequestHandler(ElicitRequestSchema, accept);
  await client.connect(new StreamableHTTPClientTransport(new URL(url)));
  return client;
}

// A value for each property that a schema wants.
function example(schema) {
  const of = { integer: 1, number: 1, boolean: true, array: [], object: {} };
  const entries = Object.entries(schema?.properties ?? {});
  return Object.fromEntries(entries.map(([name, property]) => [name, of[property.type] ?? "text"]));
}

const client = await connect();
if (scenario !== "initialize") {
  const { tools } = await client.listTools();
  console.log("tools", JSON.stringify(tools.map((tool) => tool.name)));
  const calls = context.toolCalls ?? tools.map(({ name, inputSchema }) => ({ name, arguments: example(inputSchema) }));
  for (const call of calls) {
    try {
      console.log(call.name, JSON.stringify(await client.callTool(call)));
    } catch (error) {
      console.log(call.name, String(error));
    }
  }
}
await client.close();
