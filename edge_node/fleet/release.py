"""Run the model version that the fleet desires.

Owns the one current model of this node and how it changes: load the new one on every worker,
switch the agents, let frames under way end, then unload the old one. Never leaves the node
without a model: whatever fails, the old one stays, and ``error`` says why.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from edge_node.workers import ModelError, ModelFile, WorkerHandle
from models.manifest import Manifest

log = logging.getLogger(__name__)

UNLOAD_AFTER_S = 5.0
"""How long the old version still serves peers that have not heard of the new one."""


class Release:
    """The model of this node: what is desired, what runs, and what went wrong."""

    def __init__(
        self,
        manifest: Manifest,
        variant: str,
        workers: Sequence[WorkerHandle],
        use: Callable[[str], Awaitable[None]],
    ) -> None:
        """Start from ``variant`` of ``manifest``; ``use`` switches the agents to a digest.

        Raises:
            ModelError: the manifest has no such variant.
        """
        self.manifest = manifest
        self.current: ModelFile | None = None
        self.error = ""
        self._workers = workers
        self._use = use
        self._lock = asyncio.Lock()
        self._unloads: set[asyncio.Task[None]] = set()
        self._default = self.file(variant)

    @property
    def key(self) -> str:
        """Key of the fleet register that holds the desired release."""
        return f"release/{self.manifest.name}"

    def file(self, variant: str) -> ModelFile:
        """Return the file of ``variant``.

        Raises:
            ModelError: the manifest has no such variant.
        """
        found = self.manifest.variants.get(variant)
        if found is None:
            known = ", ".join(sorted(self.manifest.variants))
            raise ModelError(f"{self.manifest.name} has no variant {variant}; it has: {known}")
        return found

    def desired(self, register: object) -> ModelFile:
        """Return the file that ``register`` (the fleet's release, or None) asks for.

        Raises:
            ModelError: this node has no file of that digest.
        """
        if register is None:
            return self._default
        if not isinstance(register, dict):
            raise ModelError(f"{self.key} holds no release; set it again: edge-node models set")
        variant, digest = str(register.get("variant")), register.get("digest")
        file = self.file(variant)
        if file.digest != digest:
            raise ModelError(
                f"{self.key} wants {variant} with digest {str(digest)[:12]}, this node has "
                f"{file.digest[:12]}; install the same version of edge-node on every node"
            )
        return file

    async def load(self, file: ModelFile) -> None:
        """Load and warm ``file`` on every worker without using it yet.

        Raises:
            ModelError: it does not load; what runs is unchanged.
        """
        await asyncio.gather(*(worker.load(file) for worker in self._workers))

    async def follow(self, register: object) -> None:
        """Run what ``register`` asks for; on failure keep the old version and say why."""
        async with self._lock:
            try:
                file = self.desired(register)
                if self.current is not None and file.digest == self.current.digest:
                    self.error = ""
                    return
                await self.load(file)
                await self._use(file.digest)
            except ModelError as error:
                if str(error) != self.error:
                    log.error("model not changed: %s", error)
                self.error = str(error)
                return
            old, self.current, self.error = self.current, file, ""
            log.info("running %s %s (%s)", file.name, file.variant, file.digest[:12])
            if old is not None:
                task = asyncio.create_task(self._unload_later(old))
                self._unloads.add(task)
                task.add_done_callback(self._unloads.discard)

    async def _unload_later(self, old: ModelFile) -> None:
        await asyncio.sleep(UNLOAD_AFTER_S)
        async with self._lock:
            if self.current is not None and self.current.digest == old.digest:
                return  # it came back meanwhile
            await asyncio.gather(*(worker.unload(old.digest) for worker in self._workers))

    def describe(self, register: object) -> dict[str, Any]:
        """Describe the model for people: desired release, variants, and the last error."""
        try:
            file = self.desired(register)
            desired = {"variant": file.variant, "version": file.version, "digest": file.digest}
        except ModelError:
            desired = dict(register) if isinstance(register, dict) else {}
        return {
            "name": self.manifest.name,
            "desired": desired,
            "variants": [
                {
                    "variant": file.variant,
                    "version": file.version,
                    "digest": file.digest,
                    "size_bytes": file.spec["size_bytes"],
                }
                for file in self.manifest.variants.values()
            ],
            "error": self.error,
        }
