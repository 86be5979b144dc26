"""Trains a few-shot learner on a frozen MobileNetV2: computes its features once, and meta-trains a small head on them.

  python examples/frozen_backbone.py --data-dir photos             photos/CLASS/IMAGE; downloads the ImageNet weights
  python examples/frozen_backbone.py --data-dir photos --compare   also times meta-iterations with the body in the model

The features are stored beside the folder (photos-features-…) and reused until the images or the weights change. A model
that includes the frozen body would learn the same, since the inner loop respects `layer.trainable = False`, but every
inner step would compute the features again.
"""

import argparse
import sys
import time

import keras
import numpy as np

import reptile_tf as rt

SIZE = 96


def body(weights: str | None) -> keras.Model:
    """Builds a frozen MobileNetV2 without its head: images [image, 96, 96, 3], 0 to 255, to float32 [image, 1280]."""
    inputs = keras.Input((SIZE, SIZE, 3))
    network = keras.applications.MobileNetV2((SIZE, SIZE, 3), include_top=False, pooling="avg", weights=weights)
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    model = keras.Model(inputs, network(scaled, training=False))
    model.trainable = False
    return model


def head(ways: int, features: int) -> keras.Model:
    """Builds the trainable part, which maps features to logits."""
    return keras.Sequential(
        [keras.Input((features,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(ways, name="logits")]
    )


def timed(model: keras.Model, classes: rt.ImageClasses, settings: rt.Settings) -> float:
    """Returns the seconds per meta-iteration, the best of five after one that compiles."""
    learner = rt.MetaLearner(
        model, keras.optimizers.Adam(settings.learning_rate, beta_1=0.0), keras.optimizers.SGD(),
        meta_batch=settings.meta_batch,
    )  # fmt: skip
    seconds = []
    for i in range(6):
        batch = rt.tasks.training_tasks(classes, iteration=i, **settings.training_arguments())
        began = time.monotonic()
        learner.step(batch, 0.1)
        seconds.append(time.monotonic() - began)
    return min(seconds[1:])


def main(arguments: argparse.Namespace) -> None:
    """Computes features, meta-trains a head on them and prints its accuracy on new classes."""
    keras.utils.set_random_seed(arguments.seed)
    rt.show_progress()
    images = rt.data.folder.load(arguments.data_dir, SIZE, store=True)
    frozen = body(None if arguments.weights == "none" else arguments.weights)
    began = time.monotonic()
    features = images.map(
        lambda some: frozen(some.astype(np.float32), training=False), 64, f"{arguments.data_dir}-features-{SIZE}"
    )
    print(f"features of {len(features.images):,} images: {time.monotonic() - began:.1f} s")
    settings = rt.Settings(
        seed=arguments.seed, classes=arguments.ways, shots=1, train_shots=5, inner_batch=10, inner_iters=5,
        learning_rate=1e-3, meta_batch=5, meta_iters=arguments.meta_iters, meta_step=1.0, meta_step_final=0.0,
        eval_samples=500,
    )  # fmt: skip
    sets = rt.data.splits.split_classes(features, seed=arguments.seed, ways=arguments.ways)
    learner = rt.meta_train(head(arguments.ways, features.images.shape[1]), sets["train"], settings)
    print(f"accuracy on {len(sets['test'])} other classes: {rt.meta_test(learner, sets['test'], settings)}")
    if arguments.compare:
        whole = keras.Sequential([frozen, head(arguments.ways, features.images.shape[1])])
        of_images = timed(whole, images, settings)
        of_features = timed(head(arguments.ways, features.images.shape[1]), features, settings)
        print(
            f"a meta-iteration: {1000 * of_features:.1f} ms on features, {1000 * of_images:.1f} ms with the body in "
            f"the model, {of_images / of_features:.0f} times as long"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder of class folders")
    parser.add_argument("--ways", type=int, default=5, help="classes of a task")
    parser.add_argument("--meta-iters", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="imagenet", help="imagenet, none (random ones) or a file")
    parser.add_argument("--compare", action="store_true", help="time meta-iterations with the body in the model, too")
    try:
        main(parser.parse_args())
    except rt.UserError as error:
        sys.exit(f"frozen_backbone.py: {error}")
