"""kinship behind the benchmark's lines; run by the environment that kinship.txt describes.

GOSSIP_KEY holds the key of 32 bytes in base64. Its LAN preset is used as it comes.
"""

import asyncio
import os
import sys
import time

import kinship


def say(*words: object) -> None:
    """Write one line, stamped."""
    print(*words, time.time_ns(), flush=True)


async def listen(cluster: "kinship.Cluster") -> None:
    """Report what this node learns."""
    async for event in cluster.events():
        match event:
            case kinship.MemberUpdated(member=member):
                say("U", member.name, member.meta.get("value", "-"))
            case kinship.MemberJoined(member=member):
                say("J", member.name)
            case kinship.MemberDead(member=member) | kinship.MemberLeft(member=member):
                say("D", member.name)


async def main(name: str, ip: str, port: str, seed: str) -> None:
    """Run one node until its input ends."""
    config = kinship.Config.lan(
        name=name,
        bind=f"{ip}:{port}",
        seeds=[seed] if seed != "-" else [],
        keys=[os.environ["GOSSIP_KEY"]],
    )
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with kinship.Cluster(config) as cluster:
        listener = asyncio.create_task(listen(cluster))
        say("R")
        while words := (await reader.readline()).decode().split():
            if words[0] == "SET":
                say("S", words[1])
                await cluster.set_meta({"value": words[1], "pad": words[2]})
            elif words[0] == "N":
                say("C", len(cluster.members()))
        listener.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
