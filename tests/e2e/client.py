"""Calls one tool through the gateway with the official MCP client: client.py URL TOOL ARGUMENTS"""

import asyncio
import json
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def main(url: str, tool: str, arguments: str) -> None:
    async with streamablehttp_client(url) as (read, write, _):
        async with ClientSession(read, write) as session:
            await session.initialize()
            tools = await session.list_tools()
            assert tool in [t.name for t in tools.tools], [t.name for t in tools.tools]
            result = await session.call_tool(tool, json.loads(arguments))
            assert not result.isError, result
            print("\n".join(getattr(part, "text", "") for part in result.content))


asyncio.run(main(*sys.argv[1:]))
