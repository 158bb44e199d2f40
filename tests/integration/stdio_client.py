"""Uses a server through `perch connect` with the official MCP client: stdio_client.py COMMAND ARGUMENTS..."""

import asyncio
import sys

from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client


async def elicited(context, params):
    return types.ElicitResult(action="accept", content={"username": "dana", "email": "d@example.com"})


async def main(command: str, *arguments: str) -> None:
    heard = []

    async def said(message):
        heard.append(message)

    async def progressed(progress, total, message):
        heard.append(f"progress {progress}")

    server = StdioServerParameters(command=command, args=list(arguments))
    async with stdio_client(server) as (read, write):
        async with ClientSession(read, write, elicitation_callback=elicited, message_handler=said) as session:
            print("server", (await session.initialize()).serverInfo.name)
            tools = [tool.name for tool in (await session.list_tools()).tools]
            print("tools", "echo" in tools, len(tools) > 20)
            echoed = await asyncio.gather(*(session.call_tool("echo", {"text": f"é{i}"}) for i in range(20)))
            print("echo", all(e.content[0].text == f"é{i}" for i, e in enumerate(echoed)))
            asked = await session.call_tool("test_elicitation", {"message": "Who are you?"})
            print("elicitation", asked.isError, "dana" in asked.content[0].text)
            await session.call_tool("test_tool_with_progress", {}, progress_callback=progressed)
            print("progress", [h for h in heard if isinstance(h, str)])
            print("prompt", (await session.get_prompt("test_simple_prompt")).messages[0].role)


asyncio.run(main(*sys.argv[1:]))
