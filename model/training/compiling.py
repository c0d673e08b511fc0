"""The first use of a compiled network, which compiles it and may fail."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from maskdepth.model.errors import ModelError


def compile_once(
    network: nn.Module, run: Callable[[], object], mode: str, failed: Callable[[str], None] | None
) -> None:
    """Compile a network by using it once; changes no weight and no buffer.

    run: forward and backward. mode: of torch.compile, for the error. failed: called with the reason
    if compiling fails; from then on the process runs uncompiled. Raises ModelError instead if it is
    None.
    """
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        run()
    except torch.OutOfMemoryError:
        raise  # not of the compiler
    except Exception as error:  # of dynamo, inductor, Triton or a C++ compiler
        cause = getattr(error, "inner_exception", error)  # dynamo wraps what a backend raises
        reason = f"{type(cause).__name__}: {next(iter(str(cause).splitlines()), '')}"
        if failed is None:
            raise ModelError(
                f"--compile {mode}: compiling failed ({reason}); use --compile off"
            ) from error
        failed(reason)
        torch.compiler.set_stance("force_eager")
    with torch.no_grad():
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)


def compiled_if(full: bool) -> AbstractContextManager[object]:
    """Context in which compiled networks run compiled for full batches alone.

    Compiling for a smaller last batch would take longer than running it.
    """
    return nullcontext() if full else torch.compiler.set_stance("force_eager")
