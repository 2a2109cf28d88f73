"""Submissions under faults: sent until accepted, followed to their ends, and checked for exactly one result."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING

import httpx

from tests.support.patience import FACT_SECONDS
from tests.support.up_client import ENDS, kinds, store_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.up import Up
    from tests.support.up_client import Messages

SPEC = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: {name}}}
spec:
  taskType: echo
  resources: {{replicas: 1, hardware: {{cpu: 1, memory: 64Mi}}}}
  echo: {{row_delay: {delay}}}
  data: {{type: list, items: [a, b, c]}}
"""


class FaultLoad:
    """Sends submissions in turn to several endpoints, one after the other, from a thread.

    Each has an idempotency key, so it may be sent again when its answer was lost.

    Args:
        up: What runs.
        endpoints: URLs of the endpoints.
        number: Submissions to send.
        pause: Seconds between two of them.
        delay: Seconds that a row takes; each has three.
    """

    def __init__(
        self, up: Up, endpoints: Sequence[str], number: int, *, pause: float = 0.1, delay: float = 0.2
    ) -> None:
        self.up, self.number = up, number
        self.ids: list[str] = []
        self.answers: Counter[str] = Counter()
        self.refused = ""
        self._endpoints, self._pause, self._delay = endpoints, pause, delay
        self._key = uuid.uuid4().hex
        self._thread = threading.Thread(target=self._send_all, daemon=True)

    def __enter__(self) -> FaultLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(5)

    def states(self) -> Counter[str]:
        """Return how many tasks are in each state, from their records."""
        with store_of(self.up) as store, store.pipeline() as pipe:
            for task_id in self.ids:
                pipe.hget(f"mloc:task:{task_id}", "status")
            return Counter(str(status) for status in pipe.execute())

    def wait_ended(self, seconds: float) -> Counter[str]:
        """Wait until all were accepted and have ended; return their states."""
        deadline = time.monotonic() + seconds
        self._thread.join(seconds)
        assert not self.refused, self.refused
        while True:
            states = self.states()
            if len(self.ids) == self.number and not set(states) - ENDS:
                return states
            assert time.monotonic() < deadline, (len(self.ids), states, self.answers)
            time.sleep(0.5)

    def check(self, seconds: float, heard: Messages | None = None) -> None:
        """Check that each task is done, once: one result on the disk, one message of success.

        Args:
            seconds: How long their ends may take.
            heard: The messages; None where Redis was killed, which keeps none for those who listen later.
        """
        assert self.wait_ended(seconds) == {"DONE": self.number}, self._failures()
        assert set(self.answers) <= {"200", "503", "no answer"}, self.answers
        results = self.up.home / "results"
        assert [i for i in self.ids if not (results / i / "manifest.json").is_file()] == []
        if heard is None:
            return
        deadline = time.monotonic() + FACT_SECONDS
        while wrong := [i for i in self.ids if kinds(heard, i).count("TASK_SUCCEEDED") != 1]:
            assert time.monotonic() < deadline, {i: kinds(heard, i) for i in wrong[:5]}
            time.sleep(0.2)

    def _failures(self) -> list[str]:
        with store_of(self.up) as store:
            found = [store.hmget(f"mloc:task:{i}", "status", "error") for i in self.ids]
        return [f"{status}: {error}" for status, error in found if status != "DONE"][:5]

    def _send_all(self) -> None:
        with httpx.Client(timeout=15, trust_env=False) as client:
            for number in range(self.number):
                self._send(client, number)
                time.sleep(self._pause)

    def _send(self, client: httpx.Client, number: int) -> None:
        text = SPEC.format(name=f"load-{number}", delay=self._delay)
        headers = {"Content-Type": "text/yaml", "Idempotency-Key": f"{self._key}-{number}"}
        tries = number
        while True:
            url = f"{self._endpoints[tries % len(self._endpoints)]}/api/v1/tasks"
            try:
                answer = client.post(url, content=text, headers=headers)
            except httpx.HTTPError:
                self.answers["no answer"] += 1
            else:
                self.answers[str(answer.status_code)] += 1
                if answer.is_success:
                    self.ids += [task["task_id"] for task in json.loads(answer.content)["tasks"]]
                    return
                if answer.status_code < 500:
                    self.refused = answer.text
                    return
            tries += 1
            time.sleep(0.2)
