"""torch.compile; on CUDA in half precision and captured as one CUDA graph."""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

from samfeat_core.engines import Job
from samfeat_core.engines.eager import extraction_graph
from samfeat_core.engines.staging import PackedGraph, StagedEngine
from samfeat_core.errors import EngineError, SamfeatError

WARM_UP_RUNS = 3
_recording = Lock()  # CUDA records one graph at a time; a node may build for a new size while an old build goes on

# All engines share the code of one forward(), and each size of image counts as another compilation of it.
_LIMIT = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
setattr(torch._dynamo.config, _LIMIT, 256)


class CompiledEngine(StagedEngine):
    """A compiled graph on the CPU."""

    name = "compile"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.graph = torch.compile(PackedGraph(extraction_graph(job)), fullgraph=True, dynamic=False)
        self.run()

    @torch.inference_mode()
    def run(self) -> Tensor:
        return self.graph(*self.inputs)


class CudaGraphEngine(CompiledEngine):
    """The compiled graph recorded once and replayed.

    Recorded here and not by torch.compile's own mode, whose graphs belong to the thread that made them:
    a node builds in one thread and runs in another.
    """

    def __init__(self, job: Job) -> None:
        StagedEngine.__init__(self, job)
        graph = extraction_graph(job, half=True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.graph = torch.compile(PackedGraph(graph), fullgraph=True, dynamic=False)
        self.recorded = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with _recording, torch.inference_mode():
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_RUNS):
                    self.graph(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self.recorded, capture_error_mode="thread_local"):  # other threads may allocate
                self.output = self.graph(*self.inputs)

    def run(self) -> Tensor:
        self.recorded.replay()
        return self.output


def build(job: Job) -> CompiledEngine:
    """Raises EngineError when compiling or recording fails."""
    try:
        if job.device == "cpu":
            return CompiledEngine(job)
        with torch.cuda.device(job.device):
            return CudaGraphEngine(job)
    except SamfeatError:
        raise
    except Exception as error:  # the compiler leaks many types
        raise EngineError(f"{type(error).__name__}: {error}") from error
