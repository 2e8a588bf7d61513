"""The module file of the digits example: the functions of Transform and Trainer, without tfx_compression.

It has its own folder, because TFX packs every .py file next to a module file into the wheel for each component.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # Transform's layer must be a Keras 2 layer, like the model.

import tensorflow as tf
import tensorflow_transform as tft
import tf_keras

LABEL = "label"
BATCH_SIZE = 64


def preprocessing_fn(inputs):
    """Divides pixels by the largest one in the data and makes images of one channel.

    The code multiplies by the reciprocal, because TFLite has an integer MUL, but only a float DIV.
    """
    scale = 1.0 / tft.max(inputs["image"])
    return {
        "image_xf": tf.reshape(inputs["image"] * scale, [-1, 8, 8, 1]),
        LABEL: inputs[LABEL],
    }


def build_model() -> tf_keras.Model:
    """Returns a small convolutional network of 85,000 weights."""
    image = tf_keras.Input((8, 8, 1), name="image_xf")
    x = tf_keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="conv_1")(image)
    x = tf_keras.layers.Conv2D(64, 3, padding="same", activation="relu", name="conv_2")(x)
    x = tf_keras.layers.MaxPooling2D(name="pool")(x)
    x = tf_keras.layers.Flatten(name="flatten")(x)
    x = tf_keras.layers.Dense(64, activation="relu", name="dense_1")(x)
    probabilities = tf_keras.layers.Dense(10, activation="softmax", name="probabilities")(x)
    return tf_keras.Model(image, probabilities, name="digits")


def compile_fn(model):
    """Compiles the network. SparsityFineTuner uses this too, and sets its own learning rate."""
    model.compile(tf_keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", ["sparse_categorical_accuracy"])


def run_fn(fn_args):
    """Trains the network and saves it with a signature that takes serialized tf.Examples."""
    tf_keras.utils.set_random_seed(1)
    transform = tft.TFTransformOutput(fn_args.transform_graph_path)
    model = build_model()
    compile_fn(model)
    # AutoGraph skips Keras, but not tf_keras, whose source it would convert for 20 s.
    model.train_step = tf.autograph.experimental.do_not_convert(model.train_step)
    model.test_step = tf.autograph.experimental.do_not_convert(model.test_step)
    model.fit(
        _dataset(fn_args.train_files, transform).shuffle(2_000).batch(BATCH_SIZE).repeat(),
        steps_per_epoch=fn_args.train_steps,
        validation_data=_dataset(fn_args.eval_files, transform).batch(BATCH_SIZE),
        verbose=2,
    )
    model.tft_layer = transform.transform_features_layer()
    raw_spec = transform.raw_feature_spec()
    raw_spec.pop(LABEL)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve_tf_examples(examples):
        features = tf.io.parse_example(examples, raw_spec)
        return {"probabilities": model(model.tft_layer(features)["image_xf"])}

    # Serving doesn't need the optimizer's state, which is twice the size of the weights.
    model.save(
        fn_args.serving_model_dir,
        save_format="tf",
        signatures={"serving_default": serve_tf_examples},
        include_optimizer=False,
    )


def _dataset(patterns, transform):
    files = tf.io.gfile.glob(patterns)
    spec = transform.transformed_feature_spec()

    def parse(example):
        features = tf.io.parse_single_example(example, spec)
        return features, features.pop(LABEL)

    return tf.data.TFRecordDataset(files, compression_type="GZIP").map(parse).cache()
