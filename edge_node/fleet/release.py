"""Run the model version that the fleet desires.

Owns the one current model of this node and how it changes: load the new one, let the agents
switch, unload the old one when nobody uses it any more. Never leaves the node without a model:
whatever fails, another one runs, and ``error`` says why. :meth:`Release.follow` may be called as
often as one likes; it does what is missing.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from edge_node.workers import Effort, ModelError, ModelFile, WorkerHandle
from models.manifest import Manifest

log = logging.getLogger(__name__)

RELEASE = "release/"
UNLOAD_AFTER_S = 5.0
"""How long the old version still serves peers that have not heard of the new one."""


class Release:
    """The model of this node: what is desired, what runs, and what went wrong."""

    def __init__(
        self,
        manifest: Manifest,
        variant: str,
        workers: Sequence[WorkerHandle],
        in_use: Callable[[], set[str]],
        also: str = "",
    ) -> None:
        """Start from ``variant`` of ``manifest``; ``in_use`` tells the digests that agents run.

        ``also`` names a variant that is loaded besides, if that can be done.

        Raises:
            ModelError: the manifest has no such variant.
        """
        self.manifest = manifest
        self.current: ModelFile | None = None
        self.error = ""
        self._workers = workers
        self._in_use = in_use
        self._lock = asyncio.Lock()
        self._unloads: dict[str, asyncio.Task[None]] = {}
        self._default = self.file(variant)
        self._also = self.file(also) if also else None

    @property
    def key(self) -> str:
        """Key of the fleet register that holds the desired release."""
        return RELEASE + self.manifest.name

    @property
    def digest(self) -> str:
        """Digest of the model that this node runs; empty while no worker holds it."""
        digest = self.current.digest if self.current else ""
        return digest if any(digest in worker.loaded for worker in self._workers) else ""

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
        """Load and warm ``file`` on every living worker without using it yet.

        Raises:
            ModelError: no worker could load it; what runs is unchanged.
        """
        living = [worker for worker in self._workers if worker.alive]
        outcomes = await asyncio.gather(
            *(worker.load(file) for worker in living), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if outcome is not None]
        for failure in failures:
            if not isinstance(failure, ModelError):
                raise failure
        if len(failures) == len(living):
            raise failures[0] if failures else ModelError("no accelerator works")

    async def follow(self, register: object) -> None:
        """Run what ``register`` asks for, on every worker that can; else say why not.

        A node that cannot run it keeps what it has, or falls back to its own file of that variant,
        or to its configured one.
        """
        async with self._lock:
            problem = ""
            try:
                file = self.desired(register)
            except ModelError as error:
                problem = str(error)
                file = self.current or self._fallback(register)
            try:
                await self.load(file)
            except ModelError as error:
                problem = problem or str(error)
            else:
                self._switch(file)
                problem = problem or await self._load_also()
            if problem and problem != self.error:
                log.error("model: %s", problem)
            self.error = problem

    async def _load_also(self) -> str:
        """Load the variant that is wanted besides; return what keeps it from being loaded."""
        if self._also is not None:
            try:
                await self.load(self._also)
            except ModelError as error:
                return f"[model] also: {error}"
        return ""

    def by_digest(self, digest: str) -> ModelFile | None:
        """Return the manifest's file of a digest, None if it is none of ours."""
        files = self.manifest.variants.values()
        return next((file for file in files if file.digest == digest), None)

    def quality(self, digest: str, effort: Effort) -> float:
        """Return how good the answers of a model at an effort are; 0 if it is none of ours."""
        file = self.by_digest(digest)
        return file.quality(effort) if file is not None else 0.0

    def _fallback(self, register: object) -> ModelFile:
        variant = register.get("variant") if isinstance(register, dict) else None
        return self.manifest.variants.get(str(variant), self._default)

    def _switch(self, file: ModelFile) -> None:
        old, self.current = self.current, file
        if (pending := self._unloads.pop(file.digest, None)) is not None:
            pending.cancel()
        if old is None or old.digest != file.digest:
            log.info("running %s %s (%s)", file.name, file.variant, file.digest[:12])
            if old is not None:
                self._unloads[old.digest] = asyncio.create_task(self._unload(old.digest))

    async def _unload(self, digest: str) -> None:
        """Unload a version when peers had time to hear of the new one and no agent needs it."""
        while True:
            await asyncio.sleep(UNLOAD_AFTER_S)
            if digest not in self._in_use():
                break
        del self._unloads[digest]
        if self._also is not None and digest == self._also.digest:
            return
        await asyncio.gather(*(worker.unload(digest) for worker in self._workers))

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
