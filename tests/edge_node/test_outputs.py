"""Results reach their consumer; a broken consumer costs nothing but its own results."""

import asyncio
import json
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_node.cameras import outputs


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def result(number: int) -> dict[str, object]:
    return {"agent": "door", "frame": number}


def test_json_lines_are_whole_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    async def scenario() -> None:
        output = outputs.json_lines(str(path))
        for number in range(100):
            output.put(result(number))
        await output.close()

    asyncio.run(scenario())
    assert [json.loads(line)["frame"] for line in path.read_text().splitlines()] == list(range(100))


def test_a_full_disk_costs_no_line_once_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "RETRY_MIN_S", 0.01)
    path = tmp_path / "out.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def scenario() -> None:
        output = outputs.json_lines(str(path))
        output.put(result(0))
        await until(lambda: output.written == 1)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
            output.put(result(1))
            await until(lambda: bool(output.problem))
            output.put(result(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await until(lambda: output.written == 3)
        assert output.problem == ""
        await output.close()

    asyncio.run(scenario())
    assert [json.loads(line)["frame"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_consumer_that_stands_still_loses_the_oldest_and_counts_them() -> None:
    async def scenario() -> None:
        stuck = asyncio.Event()

        async def write(_: list[outputs.Result]) -> None:
            await stuck.wait()

        output = outputs.Output("stuck", write)
        for number in range(outputs.QUEUE_RESULTS + 7):
            output.put(result(number))
        assert output.dropped == 7
        stuck.set()
        await until(lambda: output.written > 0)
        await output.close()

    asyncio.run(scenario())


@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="needs the mosquitto MQTT broker")
def test_mqtt_publishes_and_survives_the_broker(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    command = [shutil.which("mosquitto") or "", "-c", str(config)]

    async def scenario() -> None:
        import aiomqtt

        output = outputs.mqtt(f"mqtt://127.0.0.1:{port}/site")
        output.put(result(1))  # no broker yet
        await until(lambda: bool(output.problem))
        broker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            await until(lambda: output.written == 1)
            async with aiomqtt.Client("127.0.0.1", port) as client:
                await client.subscribe("site/#")
                output.put(result(2))
                async with asyncio.timeout(10):
                    message = await anext(client.messages)
            assert str(message.topic) == "site/door"
            assert json.loads(bytes(message.payload))["frame"] == 2
        finally:
            await output.close()
            broker.terminate()
            broker.wait(10)

    asyncio.run(scenario())
