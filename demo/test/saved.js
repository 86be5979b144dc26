/**
 * What the page makes of a saved model: node test/saved.js FILE.keras IMAGES
 *
 * IMAGES is a file of float32 images. Prints {about, labels, logits} as JSON; a learner's logits are those of all images in
 * one batch, before any step, a classifier's those of its `predict`.
 */

import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';

import { bundledCore } from './core.js';

const core = await bundledCore();
await core.startBackend();
const [file, pixels] = await Promise.all(process.argv.slice(2, 4).map((path) => readFile(path)));
const exact = (buffer) => buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.length);
const { artifact, labels, about } = await core.readSaved(basename(process.argv[2]), exact(file));
const size = core.imageShape(artifact).reduce((a, b) => a * b);
const values = new Float32Array(exact(pixels));
const images = Array.from({ length: values.length / size }, (_, i) => values.subarray(i * size, (i + 1) * size));
const network = await (labels ? core.Classifier : core.Learner).create(artifact);
console.log(JSON.stringify({ about, labels, logits: network.outputs(images), count: network.count ?? null }));
