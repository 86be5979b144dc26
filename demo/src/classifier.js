/** A classifier that has learned its classes: the network as it is, with batch norm's moving averages. */

import { io, softmax, tensor, tidy } from '@tensorflow/tfjs-core';
import { loadLayersModel } from '@tensorflow/tfjs-layers';

import { imageShape, joined } from './artifact.js';

export class Classifier {
  static async create(artifact) {
    const weightSpecs = artifact.weights.map(({ name, shape }) => ({ name, shape, dtype: 'float32' }));
    const initial = { modelTopology: artifact.topology, weightSpecs, weightData: joined(artifact.weights) };
    return new Classifier(imageShape(artifact), await loadLayersModel(io.fromMemory(initial)));
  }

  constructor(shape, model) {
    this.imageShape = shape;
    this.model = model;
  }

  /** The logits of a batch of images, an array for each image. */
  outputs(images) {
    return tidy(() => this.apply(images).arraySync());
  }

  /** The probability of each class for an image. */
  probabilities(image) {
    return tidy(() => softmax(this.apply([image])).arraySync()[0]);
  }

  apply(images) {
    const values = images.flatMap((image) => [...image]);
    return this.model.apply(tensor(values, [images.length, ...this.imageShape]), { training: false });
  }

  dispose() {
    this.model.dispose();
  }
}
