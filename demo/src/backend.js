/**
 * TensorFlow.js on its plain CPU backend, with only the kernels that these networks need: 40 kB less to load.
 *
 * The networks are tiny: on a CPU, in a worker, they adapt in about a second; the same numbers come out everywhere, and
 * nothing depends on a graphics driver. A layer whose kernel is missing here fails with the kernel's name.
 */

import { memory, ready, registerKernel, setBackend, version_core } from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu/dist/base.js';
import { _fusedMatMulConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/_FusedMatMul.js';
import { addConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Add.js';
import { batchMatMulConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/BatchMatMul.js';
import { batchNormConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/BatchNorm.js';
import { castConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Cast.js';
import { conv2DConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Conv2D.js';
import { conv2DBackpropInputConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Conv2DBackpropInput.js';
import { expConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Exp.js';
import { fusedConv2DConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/FusedConv2D.js';
import { identityConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Identity.js';
import { logConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Log.js';
import { maxConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Max.js';
import { maxPoolConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/MaxPool.js';
import { maxPoolGradConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/MaxPoolGrad.js';
import { meanConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Mean.js';
import { multiplyConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Multiply.js';
import { negConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Neg.js';
import { oneHotConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/OneHot.js';
import { realDivConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/RealDiv.js';
import { reluConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Relu.js';
import { reshapeConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Reshape.js';
import { rsqrtConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Rsqrt.js';
import { softmaxConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Softmax.js';
import { squareConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Square.js';
import { stepConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Step.js';
import { subConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Sub.js';
import { sumConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Sum.js';
import { tileConfig } from '@tensorflow/tfjs-backend-cpu/dist/kernels/Tile.js';

import { filterGradientConfig } from './filter_gradient.js';

const KERNELS = [
  _fusedMatMulConfig,
  addConfig,
  batchMatMulConfig,
  batchNormConfig,
  castConfig,
  conv2DConfig,
  conv2DBackpropInputConfig,
  expConfig,
  filterGradientConfig,
  fusedConv2DConfig,
  identityConfig,
  logConfig,
  maxConfig,
  maxPoolConfig,
  maxPoolGradConfig,
  meanConfig,
  multiplyConfig,
  negConfig,
  oneHotConfig,
  realDivConfig,
  reluConfig,
  reshapeConfig,
  rsqrtConfig,
  softmaxConfig,
  squareConfig,
  stepConfig,
  subConfig,
  sumConfig,
  tileConfig,
];

/** Starts the backend; returns what to call it. */
export async function startBackend() {
  for (const kernel of KERNELS) registerKernel(kernel);
  await setBackend('cpu');
  await ready();
  return `TensorFlow.js ${version_core}, CPU`;
}

/** Tensors that are alive, to see that none leaks. */
export function tensorCount() {
  return memory().numTensors;
}
