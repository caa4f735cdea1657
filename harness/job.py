"""A job: one unit of work, and of what is committed.

It is found in the store by a key that hashes its kind, its spec and the digests of what its inputs turned out to be. So
scores belong to weights, not to how the weights were made: a model that is rebuilt to other bytes inherits nothing, one
that is rebuilt to the same bytes loses nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.store import digest_of


@dataclass(frozen=True)
class Input:
    """What a job reads: another job's object, or something whose digest is a fact. `model` names it for people."""

    role: str
    job: str | None = None
    digest: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Job:
    """One unit of work. `where` holds what its worker must know besides, and what no result depends on."""

    id: str
    kind: str
    spec: Mapping[str, Any]
    inputs: tuple[Input, ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The jobs that must be done before."""
        return tuple(i.job for i in self.inputs if i.job)

    def key(self, digests: Mapping[str, str]) -> str:
        """The key in the store, given the digests of the jobs that it needs."""
        return digest_of([self.kind, self.spec, [[i.role, digests[i.job] if i.job else i.digest] for i in self.inputs]])
