"""PrefixRouter: how Ray Serve chooses a replica for a request. A router that raises leaves its request
without an answer for ever, so whatever goes wrong here ends in the power of two choices.
"""

import logging
import random

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from gyrfalcon.replicas.affinity import PrefixAffinity, beginnings
from gyrfalcon.replicas.forwarding import Forwarded

log = logging.getLogger(__name__)


class PrefixRouter(RequestRouter):
    """Prompts that begin alike go where the first of them went, as long as that replica is not well ahead
    of the others; all else goes to the less loaded of two.
    """

    def initialize_state(self, **kwargs: object) -> None:
        """What Ray calls with `request_router_kwargs`, of which there are none."""
        self._affinity = PrefixAffinity()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each, the best first. Never raises."""
        try:
            return self._ranks(candidate_replicas, pending_request)
        except Exception:
            log.exception("a request is routed by the power of two choices")
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: object
    ) -> None:
        """A replica has taken a request."""
        try:
            forwarded = _forwarded(pending_request)
            numbers = [] if forwarded is None else beginnings(forwarded.path, forwarded.body)
            self._affinity.routed(replica_id.unique_id, numbers)
        except Exception:
            log.exception("a request is not remembered")

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A request has ended, one way or another."""
        try:
            self._affinity.completed(replica_id.unique_id)
        except Exception:
            log.exception("a request's end is not noticed")

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """There are other replicas now."""
        super().update_replicas(replicas)
        try:
            self._affinity.keep([one.replica_id.unique_id for one in replicas])
        except Exception:
            log.exception("replicas that have ended are not forgotten")

    def _ranks(
        self, candidates: list[RunningReplica], pending: PendingRequest | None
    ) -> list[list[RunningReplica]]:
        if pending is not None:  # wait before the next try, where all have as much as they take
            pending.routing_context.should_backoff = True
        forwarded = None if pending is None else _forwarded(pending)
        by_name = {one.replica_id.unique_id: one for one in candidates}
        if forwarded is None:
            return [[by_name[name]] for name in self._affinity.ranked([], list(by_name))]
        others = [name for name in by_name if name not in forwarded.avoided] or list(by_name)
        numbers = beginnings(forwarded.path, forwarded.body)
        return [[by_name[name]] for name in self._affinity.ranked(numbers, others)]


def _forwarded(pending: PendingRequest) -> Forwarded | None:
    """The HTTP request in a call's arguments, if there is one."""
    return next((one for one in pending.args if isinstance(one, Forwarded)), None)
