"""What library calls print: nothing but warnings that are meant for the user."""

import logging
import os
import subprocess
import sys
import textwrap

import pytest
from tfx_compression.quiet import quiet_libraries

PRELUDE = """
    import sys
    import numpy as np
    import tensorflow as tf
    import tf_keras
    import tfx_compression as tfc
    from tfx_compression.compressed_evaluator import evaluate  # TFMA and Beam

    inputs = tf_keras.Input((8, 8, 1), name="image")
    hidden = tf_keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    hidden = tf_keras.layers.Conv2D(4, 3, activation="relu")(hidden)
    outputs = tf_keras.layers.Dense(3, activation="softmax", name="out")(tf_keras.layers.Flatten()(hidden))
    model = tf_keras.Model(inputs, outputs)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    images, labels = np.random.rand(12, 8, 8, 1).astype("float32"), np.arange(12) % 3
    model.fit(images, labels, verbose=0)
    model.save("trained")
    with tf.io.TFRecordWriter("rows.tfrecord") as writer:
        for image, label in zip(images, labels):
            example = tf.train.Example()
            example.features.feature["image"].float_list.value.extend(image.ravel())
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    plan = tfc.PruningPlan(technique="filter", criterion="taylor", sparsity=0.5, protect=())

    def tried(name, function):
        print(f"== {name}", flush=True)
        print(f"== {name}", file=sys.stderr, flush=True)
        return function()

"""
CALLS = """
    pruned = tried("prune", lambda: tfc.prune("trained", tfc.PruningPlan(sparsity=0.5, protect=())))
    narrow = tried("prune channels", lambda: tfc.prune("trained", plan, data))
    tried("save", lambda: pruned.save("pruned"))
    tried("save channels", lambda: narrow.save("narrow"))
    tuned = tried("fine_tune", lambda: tfc.fine_tune(pruned, data, tfc.FineTuning(epochs=1)))
    tried("quantize", lambda: tfc.quantize("trained", tfc.Quantization(mode="int8"), data))
    tried("evaluate", lambda: tfc.evaluate({"pruned": "pruned"}, "rows.tfrecord", "label", baseline="trained"))
    tried("end", lambda: None)
"""


@pytest.mark.slow
def test_library_calls_print_nothing(tmp_path):
    script = textwrap.dedent(PRELUDE + CALLS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    for output in (result.stdout, result.stderr):
        printed = output[output.index("== prune\n") :]
        assert all(line.startswith("== ") for line in printed.splitlines()), printed
        assert printed.endswith("== end\n")


def test_known_messages_are_held_back_and_others_are_not(caplog):
    caplog.set_level(logging.WARNING, "tensorflow")  # which the command line changes
    with quiet_libraries():
        logging.getLogger("tensorflow").warning("No training configuration found in save file, so …")
        logging.warning("a user's callback warns")
        logging.getLogger("tensorflow").error("No training configuration found, as an error")
    logging.getLogger("tensorflow").warning("No training configuration found, afterwards")
    assert [record.getMessage() for record in caplog.records if record.name in ("root", "tensorflow")] == [
        "a user's callback warns",
        "No training configuration found, as an error",
        "No training configuration found, afterwards",
    ]
