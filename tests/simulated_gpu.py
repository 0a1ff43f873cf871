"""A GPU whose streams run their work in any order that their events allow.

Memory is the host's. Work is enqueued, and done when somebody waits for it, by a random choice
among the streams: what is not ordered by an event goes wrong sooner or later.
"""

import random
import threading
from contextlib import contextmanager

import torch


class Event:
    def __init__(self, gpu):
        self.gpu, self.token = gpu, None

    def record(self, stream):
        token = self.token = [False]

        def happen():
            token[0] = True

        stream.enqueue(happen)

    def synchronize(self):
        self.gpu.run_until(self.token)


class Stream:
    def __init__(self, gpu, name):
        self.gpu, self.name, self.queue = gpu, name, []

    def enqueue(self, work):
        with self.gpu.lock:
            self.queue.append((None, work))

    def wait_event(self, event):
        with self.gpu.lock:
            self.queue.append((event.token, lambda: None))

    def wait_stream(self, other):
        event = Event(self.gpu)
        event.record(other)
        self.wait_event(event)

    def synchronize(self):
        event = Event(self.gpu)
        event.record(self)
        event.synchronize()


class SimulatedGpu:
    """In place of `distinf.gpu.Cuda`."""

    def __init__(self, seed=0):
        self.lock = threading.RLock()
        self.random = random.Random(seed)
        self.streams = []
        self.default = self.stream()
        self.current = threading.local()
        self.memory = []  # kept, so that no address is used twice
        self.lent = []
        self.broken = None

    # what a model does

    def tensor(self, *values):
        tensor = torch.tensor(values, dtype=torch.float32)
        self.memory.append(tensor)
        return tensor

    def launch(self, work):
        self.current_stream().enqueue(work)

    def run_until(self, token):
        with self.lock:
            while not token[0]:
                if self.broken is not None:
                    raise self.broken
                able = [s for s in self.streams if s.queue and (s.queue[0][0] or [True])[0]]
                assert able, "the streams wait for each other"
                self.random.choice(able).queue.pop(0)[1]()

    # what Cuda has

    def owns(self, tensor):
        return any(tensor.data_ptr() == own.data_ptr() for own in self.memory)

    def stream(self):
        self.streams.append(Stream(self, f"stream{len(self.streams)}"))
        return self.streams[-1]

    def default_stream(self):
        return self.default

    def current_stream(self):
        return getattr(self.current, "stream", self.default)

    @contextmanager
    def using(self, stream):
        before = self.current_stream()
        self.current.stream = stream
        try:
            yield
        finally:
            self.current.stream = before

    def event(self):
        return Event(self)

    def host_like(self, tensor):
        return torch.full_like(tensor, float("nan"))

    def copy(self, into, out_of):
        self.launch(lambda: into.copy_(out_of))

    def to_device(self, tensor):
        if self.owns(tensor):
            return tensor
        there = torch.full_like(tensor, float("nan"))
        self.memory.append(there)
        self.launch(lambda: there.copy_(tensor))
        return there

    def lend(self, tensor, stream):
        self.lent.append((tensor.data_ptr(), stream))

    def probe(self):
        if self.broken is not None:
            raise self.broken

    def release(self):
        pass
