"""Workers: how their processes can end, what comes back, and that no process is left."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
import tensorflow as tf
from tfx_compression import worker
from tfx_compression.errors import ConfigError, DataError, LineageError, ModelError, StoreError, WorkerError

from tests.support.errors import raises

pytestmark = pytest.mark.slow  # each starts processes

TF = tuple(map(int, tf.__version__.split(".")[:2]))
MEMORY_LIMIT = 300 * 2**20


@pytest.fixture
def in_worker(tmp_path, monkeypatch):
    """Runs the source of `main` in a worker. `run.pids()` returns the ids of the processes that it started."""

    def run(source: str, request: object = None, **options):
        (tmp_path / "test_module.py").write_text(
            "import ctypes, os, signal, subprocess, sys, time\n"
            "from tfx_compression import worker\n"
            "from tfx_compression.errors import ModelError\n"
            f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} ')\n" + textwrap.dedent(source)
        )
        options = {"task": "The model m in mode 'int8'", **options}
        return worker.run("test_module", request or {}, **options)

    run.pids = lambda: [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # Python mistakes a source of the same size and second for it.
    yield run
    assert run.pids()
    assert ended(run.pids())


def ended(pids: list[int]) -> bool:
    """Returns whether processes have ended, or end within seconds."""
    deadline = time.monotonic() + 5
    while alive := [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]:
        if time.monotonic() > deadline:
            return not alive
        time.sleep(0.05)
    return True


def failure(in_worker, code: str, source: str, **options) -> WorkerError:
    """Returns the error of a worker that fails, after checking its code and that its message starts with the task."""
    with raises(WorkerError, code=code, match="^The model m in mode 'int8' ") as caught:
        in_worker(source, **options)
    return caught.value


def test_an_answer_comes_back_and_output_is_logged(in_worker, capfd, caplog):
    source = """
        def main(request):
            print("noise")
            data = sys.stdin.buffer.read()
            return {"sum": sum(request["numbers"]), "bytes": len(data), "last": data[-1]}
    """
    data = bytes(range(256)) * 1000
    caplog.set_level("INFO", "tfx_compression")
    assert in_worker(source, {"numbers": [1, 2, 3]}, input=data) == {"sum": 6, "bytes": 256_000, "last": 255}
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == ["The model m in mode 'int8' printed:\nnoise\n"]


@pytest.mark.parametrize("error_class", [ConfigError, ModelError, DataError, StoreError, LineageError, WorkerError])
def test_an_error_of_the_package_comes_back_with_class_field_and_code(in_worker, error_class):
    source = f"""
        from tfx_compression import errors
        def main(request):
            raise errors.{error_class.__name__}("The model lacks x. Remedy: add it.", field="Plan.x", code="no-x")
    """
    with raises(error_class, field="Plan.x", code="no-x") as caught:
        in_worker(source)
    assert type(caught.value) is error_class
    assert str(caught.value) == "The model lacks x. Remedy: add it."


def test_an_error_of_a_class_that_this_process_lacks_comes_back_as_its_base_class(in_worker):
    source = """
        class UnusableError(ModelError):
            pass
        def main(request):
            raise UnusableError("The model lacks x.", code="no-x")
    """
    with raises(ModelError, code="no-x") as caught:
        in_worker(source)
    assert type(caught.value) is ModelError


def test_another_error_has_the_step_and_the_operator_in_its_message(in_worker):
    error = failure(
        in_worker,
        "failed",
        """
        def main(request):
            worker.step("reading")
            worker.step("converting")
            raise RuntimeError("first line\\n'tf.XlaSort' op is neither a custom op nor a flex op")
        """,
    )
    assert (error.step, error.op) == ("converting", "tf.XlaSort")
    assert all(part in str(error) for part in ("converting", "tf.XlaSort", "RuntimeError: first line"))


@pytest.mark.parametrize(
    ("output", "op"),
    [
        ("Op type not registered 'Foo' in binary", "Foo"),
        ("error: 'tfl.conv_2d' op failed to verify", "tfl.conv_2d"),
        ("Node number 3 (CONV_2D) failed to prepare.", "CONV_2D"),
        ("Quantization to 16x8-bit not yet supported for op: 'SIN'.", "SIN"),
        ("no operator at all", ""),
    ],
)
def test_the_operator_in_the_output_is_found(output, op):
    assert worker._worker_error("m", "failed", "failed", "", output).op == op


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGFPE"])
def test_a_crash_is_reported_with_signal_step_and_output(in_worker, name):
    error = failure(
        in_worker,
        "crashed",
        f"""
        def main(request):
            worker.step("calibrating")
            print("oh no", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.{name})
        """,
    )
    assert (error.reason, error.step, error.output) == (f"crashed ({name})", "calibrating", "oh no")
    assert all(part in str(error) for part in (name, "calibrating", "oh no"))


def test_a_read_of_address_zero_is_a_crash(in_worker):
    assert failure(in_worker, "crashed", "def main(request): ctypes.string_at(0)").reason == "crashed (SIGSEGV)"


def test_a_kill_from_outside_is_reported(in_worker):
    failure(in_worker, "killed", "def main(request): os.kill(os.getpid(), signal.SIGKILL)")


@pytest.mark.parametrize("status", [0, 3])
def test_an_exit_without_an_answer_is_reported_with_its_status(in_worker, status):
    error = failure(in_worker, "no-answer", f"def main(request): os._exit({status})")
    assert f"status {status}" in error.reason


def test_a_worker_that_hangs_is_ended_with_its_children(in_worker):
    started = time.monotonic()
    error = failure(
        in_worker,
        "hung",
        """
        def main(request):
            worker.step("optimizing")
            subprocess.Popen([sys.executable, "-c", "import test_module, time; time.sleep(600)"])
            time.sleep(600)
        """,
        timeout=4.0,
    )
    assert error.step == "optimizing"
    assert "4 s" in error.reason
    assert time.monotonic() - started < 30
    assert len(in_worker.pids()) == 2


def test_children_of_a_worker_are_ended_even_if_it_answered(in_worker):
    source = """
        def main(request):
            child = subprocess.Popen([sys.executable, "-c", "import test_module, time; print(1, flush=True);"
                                      "time.sleep(600)"], stdout=subprocess.PIPE)
            child.stdout.readline()
            return "done"
    """
    assert in_worker(source) == "done"
    assert len(in_worker.pids()) == 2


ALLOCATES = """
    def main(request):
        worker.step("packing")
        blocks = [b"x" * 2**20 for _ in range(400)]
        time.sleep(3)
        return len(blocks)
"""


def test_a_worker_that_exceeds_its_memory_limit_is_ended(in_worker):
    error = failure(in_worker, "out-of-memory", ALLOCATES, max_memory=MEMORY_LIMIT)
    assert "300 MB" in error.reason
    assert error.step == "packing"


def test_a_worker_within_its_memory_limit_answers(in_worker):
    assert in_worker(ALLOCATES, max_memory=4 * MEMORY_LIMIT) == 400


def test_the_memory_of_children_counts(in_worker):
    error = failure(
        in_worker,
        "out-of-memory",
        """
        def main(request):
            subprocess.run([sys.executable, "-c", "import time; blocks = [b'x' * 2**20 for _ in range(400)]; "
                            "time.sleep(60)"])
        """,
        max_memory=MEMORY_LIMIT,
    )
    assert "300 MB" in error.reason


def test_a_failed_allocation_of_python_is_out_of_memory(in_worker):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))"
    source = f"def main(request):\n    {limit}\n    return len(bytes(2**32))"
    assert "MemoryError" in failure(in_worker, "out-of-memory", source).reason


def test_a_failed_allocation_of_cpp_is_out_of_memory(in_worker):
    error = failure(
        in_worker,
        "out-of-memory",
        """
        def main(request):
            print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
            os.abort()
        """,
    )
    assert "std::bad_alloc" in error.reason


PARENT = """
import signal
from tfx_compression import worker
signal.signal(signal.SIGINT, signal.default_int_handler)  # Background processes of a shell ignore it.
worker.run("test_module", {}, task="m")
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_a_worker_ends_with_the_process_that_started_it(tmp_path, sent):
    pid = tmp_path / "pid"
    (tmp_path / "test_module.py").write_text(
        "import os, time\n"
        "def main(request):\n"
        f"    open({str(pid)!r} + '.new', 'w').write(str(os.getpid()))\n"
        f"    os.replace({str(pid)!r} + '.new', {str(pid)!r})\n"
        "    time.sleep(600)\n"
    )
    path = os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env={**os.environ, "PYTHONPATH": path})
    try:
        deadline = time.monotonic() + 60
        while not pid.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        worker_pid = int(pid.read_text())
        assert psutil.pid_exists(worker_pid)
        parent.send_signal(sent)
        parent.wait(30)
        assert ended([worker_pid])
    finally:
        parent.kill()
        parent.wait()


def test_a_step_outside_of_a_worker_is_ignored():
    worker.step("alone")


# Models that kill the converter of TensorFlow 2.16. A later version may answer.

KERAS3 = """
    def main(request):
        os.environ["TF_USE_LEGACY_KERAS"] = "0"
        import keras, tensorflow as tf
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        worker.step("converting")
        return len(tf.lite.TFLiteConverter.from_keras_model(model).convert())
"""

EXAMPLES = """
    def main(request):
        import numpy as np, tensorflow as tf
        from tests.support import helpers
        kernel = tf.Variable(np.ones([64, 3], "float32"))
        def serve(examples):
            parsed = tf.io.parse_example(examples, {"image": tf.io.FixedLenFeature([8, 8, 1], tf.float32)})
            return {"y": tf.reshape(parsed["image"], [-1, 64]) @ kernel}
        specs = [tf.TensorSpec([None], tf.string, name="examples")]
        path = helpers.save_function(serve, specs, request["path"], kernel=kernel)
        rows = helpers.serialized({"image": helpers.images(4)[0]})
        converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=["serving_default"])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ({"examples": np.array([row], object)} for row in rows)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.SELECT_TF_OPS]
        worker.step("converting")
        return len(converter.convert())
"""


def answer_or_error(in_worker, source: str, request: object) -> WorkerError | int:
    try:
        return in_worker(source, request, timeout=300)
    except WorkerError as error:
        return error


def test_a_keras_3_model_that_aborts_the_converter_is_an_error(in_worker):
    result = answer_or_error(in_worker, KERAS3, {})
    if TF > (2, 16) and isinstance(result, int):
        assert result > 0
        return
    assert (result.reason, result.step) == ("crashed (SIGABRT)", "converting")
    assert "The model m in mode 'int8'" in str(result)


def test_a_signature_of_examples_that_crashes_the_converter_is_an_error(in_worker, tmp_path):
    result = answer_or_error(in_worker, EXAMPLES, {"path": str(tmp_path / "model")})
    if TF > (2, 16) and isinstance(result, int):
        assert result > 0
        return
    reason = "crashed (SIGSEGV)" if TF <= (2, 16) else result.reason  # TensorFlow 2.21 raises an error instead.
    assert (result.reason, result.step) == (reason, "converting")
