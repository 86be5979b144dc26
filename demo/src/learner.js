/**
 * A network with its inner optimizer: the same computation in the browser as in Python.
 *
 * - Batch norm always uses the statistics of the batch at hand (`training: true`), never its moving averages.
 * - The loss is the sum of the cross-entropies, not their mean.
 * - Adam is Keras's: epsilon is added to √v before the bias correction, not after it as in TensorFlow.js. beta_1 is 0, and
 *   the second moments start as they were trained.
 */

import { io, logSoftmax, mul, neg, oneHot, softmax, sum, tensor, tidy, variableGrads } from '@tensorflow/tfjs-core';
import { loadLayersModel } from '@tensorflow/tfjs-layers';

import { imageShape, joined } from './artifact.js';

export class Learner {
  /**
   * @param artifact what `readArtifact` gives.
   * @param ways classes to tell apart.
   * @param trained start from the meta-trained weights and moments, or from random weights and a fresh optimizer.
   */
  static async create(artifact, ways = artifact.ways, trained = true) {
    const topology = structuredClone(artifact.topology);
    topology.model_config.config.layers.at(-1).config.units = ways;
    const weights = artifact.weights.map((weight) => forWays(weight, artifact, ways));
    const initial = trained ? { weightSpecs: weights.map(specOf), weightData: joined(weights) } : {};
    const model = await loadLayersModel(io.fromMemory({ modelTopology: topology, ...initial }));
    return new Learner(artifact, ways, trained, model);
  }

  constructor(artifact, ways, trained, model) {
    this.ways = ways;
    this.imageShape = imageShape(artifact);
    this.model = model;
    this.variables = model.trainableWeights.map((weight) => weight.val);
    this.names = model.trainableWeights.map((weight) => weight.originalName);
    this.optimizer = artifact.optimizer;
    this.weightDecay = artifact.weightDecay;
    this.weights = this.variables.map((variable) => variable.dataSync().slice());
    this.moments = this.weights.map((values) => new Float32Array(values.length));
    this.count = 0;
    if (trained && this.optimizer.name === 'adam') {
      const byName = new Map(artifact.moments.map((moment) => [moment.name, forWays(moment, artifact, ways, true)]));
      this.moments = this.names.map((name) => byName.get(name).values.slice());
      this.count = this.optimizer.step;
    }
  }

  /** Weights, moments and step count, to come back to; nothing changes them later. */
  get state() {
    return { weights: this.weights, moments: this.moments, count: this.count };
  }

  set state({ weights, moments, count }) {
    this.weights = weights;
    this.moments = moments;
    this.count = count;
    tidy(() => this.variables.forEach((variable, i) => variable.assign(tensor(weights[i], variable.shape))));
  }

  /** One inner step on one image of each class, the i-th of class i, all in one batch. */
  step(images) {
    if (this.weightDecay !== 1) {
      this.state = { ...this.state, weights: this.weights.map((values) => values.map((w) => w * this.weightDecay)) };
    }
    const gradients = tidy(() => {
      const labels = oneHot(
        images.map((_, i) => i),
        this.ways,
      );
      const loss = () => neg(sum(mul(labels, logSoftmax(this.apply(images)))));
      const { grads } = variableGrads(loss, this.variables);
      return this.variables.map((variable) => grads[variable.name].dataSync());
    });
    this.state = this.optimizer.name === 'adam' ? this.adam(gradients) : this.sgd(gradients);
  }

  adam(gradients) {
    const { learning_rate: learningRate, beta_2: beta2, epsilon } = this.optimizer;
    const count = this.count + 1;
    const rate = learningRate * Math.sqrt(1 - beta2 ** count);
    const moments = this.moments.map((v, i) => v.map((old, j) => old + (gradients[i][j] ** 2 - old) * (1 - beta2)));
    const weights = this.weights.map((w, i) =>
      w.map((old, j) => old - (rate * gradients[i][j]) / (Math.sqrt(moments[i][j]) + epsilon)),
    );
    return { weights, moments, count };
  }

  sgd(gradients) {
    const rate = this.optimizer.learning_rate;
    const weights = this.weights.map((w, i) => w.map((old, j) => old - rate * gradients[i][j]));
    return { weights, moments: this.moments, count: this.count + 1 };
  }

  /** The logits of a batch of images, an array for each image. */
  outputs(images) {
    return tidy(() => this.apply(images).arraySync());
  }

  /** The probability of each class for `query`, classified in one batch with the images of the classes. */
  probabilities(images, query) {
    return tidy(() =>
      softmax(this.apply([...images, query]))
        .arraySync()
        .at(-1),
    );
  }

  apply(images) {
    const [height, width, channels] = this.imageShape;
    const batch = new Float32Array(images.length * height * width * channels);
    images.forEach((image, i) => batch.set(image, i * height * width * channels));
    return this.model.apply(tensor(batch, [images.length, ...this.imageShape]), { training: true });
  }

  dispose() {
    this.model.dispose();
  }
}

/**
 * Resizes the last layer's weights, or their moments, for another number of classes than the network was trained for.
 *
 * The same as reptile_tf/heads.py, which says why: the first new columns are the trained ones mirrored at their mean
 * (unless there are only two), the others lie as far from it in nearly orthogonal directions. Moments are the mean.
 */
function forWays({ name, shape, values }, artifact, ways, moments = false) {
  const head = artifact.topology.model_config.config.layers.at(-1).config.name;
  const trained = artifact.ways;
  if (ways === trained || !name.startsWith(`${head}/`)) return { name, shape, values };
  const features = values.length / trained;
  const isKernel = shape.length === 2;
  const means = Array.from({ length: features }, (_, row) =>
    average(values.subarray(row * trained, (row + 1) * trained)),
  );
  const variance = average(values.map((value, i) => (value - means[Math.floor(i / trained)]) ** 2));
  const mirrored = trained > 2 && !moments ? trained : 0;
  const widened = new Float32Array(features * ways);
  for (let column = 0; column < ways; column++) {
    const wave = column - trained - mirrored + 1;
    const direction = means.map((_, row) => Math.cos(Math.PI * (3 - Math.sqrt(5)) * (row + 1) * wave));
    const scale = isKernel && !moments ? Math.sqrt(variance / average(direction.map((value) => value ** 2))) : 0;
    means.forEach((mean, row) => {
      const at = row * trained + column;
      let value = mean + scale * direction[row];
      if (column < trained) value = values[at];
      else if (column < trained + mirrored) value = 2 * mean - values[at - trained];
      widened[row * ways + column] = value;
    });
  }
  return { name, shape: [...shape.slice(0, -1), ways], values: widened };
}

function average(values) {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

function specOf({ name, shape }) {
  return { name, shape, dtype: 'float32' };
}
