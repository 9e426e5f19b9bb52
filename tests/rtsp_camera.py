"""A small RTSP camera for tests: H.264 over interleaved TCP, packets by FFmpeg's RTP muxer."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av

from models.images import Pixels

SDP = """v=0\r
o=- 0 0 IN IP4 127.0.0.1\r
s=test camera\r
t=0 0\r
m=video 0 RTP/AVP 96\r
a=rtpmap:96 H264/90000\r
a=fmtp:96 packetization-mode=1\r
a=control:track1\r
"""


class RtspCamera:
    """Serve `frame(index)` at `fps` to one client at a time, `count` frames per connection."""

    def __init__(self, frame: Callable[[int], Pixels], fps: int, count: int) -> None:
        self._frame, self._fps, self._count = frame, fps, count
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/camera"
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with peer:
                try:
                    self._converse(peer)
                except OSError:
                    pass

    def _converse(self, peer: socket.socket) -> None:
        requests = peer.makefile("rb")
        while line := requests.readline().decode():
            method, headers = line.split()[0], {}
            while header := requests.readline().decode().strip():
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            extra, body = "", ""
            if method == "OPTIONS":
                extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif method == "DESCRIBE":
                extra, body = "Content-Type: application/sdp\r\n", SDP
            elif method == "SETUP":
                extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
            peer.sendall(
                f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\n{extra}"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            if method == "PLAY":
                self._play(peer)
                return

    def _play(self, peer: socket.socket) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as relay:
            relay.bind(("127.0.0.1", 0))
            relay.settimeout(0.02)
            target = f"rtp://127.0.0.1:{relay.getsockname()[1]}?pkt_size=1200"
            with av.open(target, "w", format="rtp") as container:
                stream: Any = container.add_stream("libx264", rate=self._fps)
                stream.height, stream.width = self._frame(0).shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "5"}
                started_s = time.monotonic()
                for index in range(self._count):
                    picture = av.VideoFrame.from_ndarray(self._frame(index), format="bgr24")
                    picture.pts, picture.time_base = index, Fraction(1, self._fps)
                    container.mux(stream.encode(picture))
                    self._relay(relay, peer)
                    time.sleep(max(0.0, started_s + index / self._fps - time.monotonic()))

    def _relay(self, relay: socket.socket, peer: socket.socket) -> None:
        while True:
            try:
                packet = relay.recv(2048)
            except TimeoutError:
                return
            peer.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
