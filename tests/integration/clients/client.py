"""The official Python client in front of several servers.

client.py legacy|modern <SERVERS: reads a JSON list of {name, url, tool, arguments, full} from standard
input, does what a user's client does with each, and prints a JSON line of what it saw. The legacy
client is the package mcp 1, the modern one mcp 2.
"""

import asyncio
import json
import sys


def text(result):
    return "\n".join(getattr(part, "text", "") for part in result.content)


async def visit(client, types, server, seen):
    """What both clients do alike."""
    tools = await client.list_tools()
    seen["tools"] = [tool.name for tool in tools.tools]
    seen["text"] = text(await client.call_tool(server["tool"], server["arguments"]))
    if not server.get("full"):
        return
    prompt = await client.get_prompt("test_simple_prompt")
    seen["prompt"] = prompt.messages[0].role
    read = await client.read_resource("test://static-text")
    seen["resource"] = bool(read.contents[0].text)
    reference = types.PromptReference(type="ref/prompt", name="p")
    completed = await client.complete(reference, {"name": "a", "value": "pari"})
    seen["completion"] = completed.completion.values

    progress = []

    async def told(value, total, message):
        progress.append(value)

    await client.call_tool("test_tool_with_progress", {}, progress_callback=told)
    seen["progress"] = progress
    seen["elicited"] = text(await client.call_tool("test_elicitation", {"message": "Who are you?"}))
    seen["failed"] = error_of(await client.call_tool("test_error_handling", {}))
    try:
        await client.call_tool("no_such_tool", {})
        seen["unknown"] = "no error"
    except Exception as error:  # The class differs between the versions.
        seen["unknown"] = error.error.code


def error_of(result):
    return getattr(result, "isError", None) or getattr(result, "is_error", None)


async def legacy(server, seen):
    from mcp import ClientSession, types
    from mcp.client.streamable_http import streamablehttp_client

    async def answer(context, params):
        seen["question"] = params.message
        return types.ElicitResult(action="accept", content={"username": "dana", "email": "d@example.com"})

    async with streamablehttp_client(server["url"]) as (read, write, _):
        async with ClientSession(read, write, elicitation_callback=answer) as session:
            seen["version"] = (await session.initialize()).protocolVersion
            await visit(session, types, server, seen)


async def modern(server, seen):
    import mcp_types as types
    from mcp.client.client import Client

    async def answer(context, params):
        seen["question"] = params.message
        return types.ElicitResult(action="accept", content={"username": "dana", "email": "d@example.com"})

    async with Client(server["url"], mode="auto", elicitation_callback=answer) as client:
        seen["version"] = client.protocol_version
        await visit(client, types, server, seen)


async def main(era):
    for server in json.load(sys.stdin):
        seen = {"name": server["name"]}
        await {"legacy": legacy, "modern": modern}[era](server, seen)
        print(json.dumps(seen), flush=True)


asyncio.run(main(sys.argv[1]))
