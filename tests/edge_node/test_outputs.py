"""Results reach their consumer; a broken consumer costs nothing but its own results."""

import asyncio
import getpass
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def test_a_pipe_that_nobody_reads_is_a_problem_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "SLOW_S", 0.05)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def scenario() -> None:
        stalled = outputs.Outputs()
        stalled.open(str(fifo), "")
        stalled.put(result(1))
        await until(lambda: bool(stalled.problems))
        assert stalled.problems == ["output json lines: it has taken nothing for 0.05 s"]
        # The executor of the loop, which everything else shares, is free.
        many = [asyncio.to_thread(threading.get_ident) for _ in range(64)]
        await asyncio.wait_for(asyncio.gather(*many), 10)
        await asyncio.wait_for(stalled.close(), 10)

    asyncio.run(asyncio.wait_for(scenario(), 20))
    with fifo.open("rb", buffering=0) as reader:  # lets the thread end
        assert json.loads(reader.read()) == result(1)


def test_a_pipe_gets_everything_once_somebody_reads(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def scenario() -> None:
        output = outputs.json_lines(str(fifo))
        output.put(result(1))
        assert json.loads(await asyncio.to_thread(fifo.read_text)) == result(1)
        await until(lambda: output.written == 1)
        assert output.problem == ""
        await output.close()

    asyncio.run(scenario())


STALLED = """
import asyncio
from edge_node.cameras import outputs

async def main():
    stalled = outputs.Outputs()
    stalled.open("-", "")
    for _ in range(500):
        stalled.put({"agent": "door", "text": "x" * 1000})
    await asyncio.sleep(0.1)
    await stalled.close()

asyncio.run(main())
"""


def test_a_stalled_standard_output_does_not_keep_the_process(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STALLED], stdout=subprocess.PIPE) as process:
        try:
            assert process.wait(30) == 0  # nothing was read from the pipe
            assert process.stdout is not None
            assert process.stdout.read().startswith(b'{"agent":"door"')
        finally:
            process.kill()


def test_any_fault_of_a_consumer_is_a_problem_and_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "RETRY_MIN_S", 0.01)

    async def scenario() -> None:
        broken = True

        async def write(_: list[outputs.Result]) -> None:
            if broken:
                raise ValueError("no such thing")

        output = outputs.Output("odd", write)
        output.put(result(1))
        await until(lambda: bool(output.problem))
        assert output.problem == "output odd: no such thing; retrying"
        broken = False
        await until(lambda: output.written == 1)
        assert output.problem == ""
        await output.close()

    asyncio.run(scenario())


def test_results_are_counted_once_written_or_dropped(tmp_path: Path) -> None:
    async def scenario() -> None:
        some = outputs.Outputs()
        some.open(str(tmp_path / "out.jsonl"), "")
        for number in range(outputs.QUEUE_RESULTS + 5):
            some.put(result(number))
        await until(lambda: some.counts()["json lines"][0] > 0)
        assert some.counts() == {"json lines": (outputs.QUEUE_RESULTS, 5)}
        await some.close()

        stuck = outputs.Output("stuck", lambda _: asyncio.sleep(60))
        for number in range(3):
            stuck.put(result(number))
        await asyncio.sleep(0)
        await stuck.close(timeout_s=0.01)
        assert (stuck.written, stuck.dropped) == (0, 3)

    asyncio.run(scenario())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def broker(config: Path, text: str) -> Iterator[None]:
    config.write_text(text)
    command = [shutil.which("mosquitto") or "", "-c", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
        try:
            yield
        finally:
            one.terminate()


@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="needs the mosquitto MQTT broker")
def test_mqtt_user_and_password_are_percent_decoded(tmp_path: Path) -> None:
    port, users = free_port(), tmp_path / "users"
    users.touch(mode=0o600)
    make = ["mosquitto_passwd", "-b", str(users), "front door", "p@ss/w:rd"]
    subprocess.run(make, check=True, capture_output=True)

    async def scenario() -> None:
        wrong = outputs.mqtt(f"mqtt://front%20door:other@127.0.0.1:{port}/site")
        wrong.put(result(1))
        right = outputs.mqtt(f"mqtt://front%20door:p%40ss%2Fw%3Ard@127.0.0.1:{port}/site")
        right.put(result(2))
        await until(lambda: right.written == 1)
        await until(lambda: "uthorized" in wrong.problem)
        assert "other" not in wrong.problem
        await asyncio.gather(wrong.close(0.1), right.close())

    text = f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {users}\n"
    text += f"user {getpass.getuser()}\n"  # so that root's broker may read root's file
    with broker(tmp_path / "mosquitto.conf", text):
        asyncio.run(scenario())


@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="needs the mosquitto MQTT broker")
def test_mqtt_publishes_and_survives_the_broker(tmp_path: Path) -> None:
    port = free_port()
    text = f"listener {port} 127.0.0.1\nallow_anonymous true\n"

    async def scenario() -> None:
        import aiomqtt

        output = outputs.mqtt(f"mqtt://127.0.0.1:{port}/site")
        output.put(result(1))  # no broker yet
        await until(lambda: bool(output.problem))
        with broker(tmp_path / "mosquitto.conf", text):
            await until(lambda: output.written == 1)
            async with aiomqtt.Client("127.0.0.1", port) as client:
                await client.subscribe("site/#")
                output.put(result(2))
                async with asyncio.timeout(10):
                    message = await anext(client.messages)
            assert str(message.topic) == "site/door"
            assert json.loads(bytes(message.payload))["frame"] == 2
            await output.close()

    asyncio.run(scenario())
