"""The user's module file of the digits example: Transform's and Trainer's functions, nothing of tfx_compression.

TFX packs every .py file beside a module file into the wheel it installs for each component, so this one has a
folder of its own.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # Transform's layer must be a Keras 2 layer, as the model is

import tensorflow as tf
import tensorflow_transform as tft
import tf_keras

LABEL = "label"
BATCH_SIZE = 64


def preprocessing_fn(inputs):
    """Pixels from 0..16 to 0..1, as an image of one channel."""
    return {
        "image_xf": tf.reshape(tft.scale_to_0_1(inputs["image"]), [-1, 8, 8, 1]),
        LABEL: inputs[LABEL],
    }


def build_model() -> tf_keras.Model:
    image = tf_keras.Input((8, 8, 1), name="image_xf")
    x = tf_keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="conv_1")(image)
    x = tf_keras.layers.Conv2D(64, 3, padding="same", activation="relu", name="conv_2")(x)
    x = tf_keras.layers.MaxPooling2D(name="pool")(x)
    x = tf_keras.layers.Flatten(name="flatten")(x)
    x = tf_keras.layers.Dense(64, activation="relu", name="dense_1")(x)
    probabilities = tf_keras.layers.Dense(10, activation="softmax", name="probabilities")(x)
    model = tf_keras.Model(image, probabilities, name="digits")
    model.compile(tf_keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", ["sparse_categorical_accuracy"])
    return model


def run_fn(fn_args):
    tf_keras.utils.set_random_seed(1)
    transform = tft.TFTransformOutput(fn_args.transform_graph_path)

    def dataset(files, training):
        rows = fn_args.data_accessor.tf_dataset_factory(
            files,
            _options(BATCH_SIZE, training),
            transform.transformed_metadata.schema,
        )
        return rows

    model = build_model()
    model.fit(
        dataset(fn_args.train_files, True),
        steps_per_epoch=fn_args.train_steps,
        validation_data=dataset(fn_args.eval_files, False),
        verbose=2,
    )
    model.tft_layer = transform.transform_features_layer()
    raw_spec = transform.raw_feature_spec()
    raw_spec.pop(LABEL)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve_tf_examples(examples):
        features = tf.io.parse_example(examples, raw_spec)
        return {"probabilities": model(model.tft_layer(features)["image_xf"])}

    model.save(fn_args.serving_model_dir, save_format="tf", signatures={"serving_default": serve_tf_examples})


def _options(batch_size, training):
    from tfx_bsl.public.tfxio import TensorFlowDatasetOptions

    return TensorFlowDatasetOptions(
        batch_size=batch_size, num_epochs=None if training else 1, shuffle=training, shuffle_seed=1, label_key=LABEL
    )
