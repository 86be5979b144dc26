import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

import { archive } from './archive.js';
import { MODEL, bundledCore, difference, readReference, readingFrom } from './core.js';

const FILES = ['model.json', 'weights.bin', 'learner.json', 'moments.bin'];
let core, contents;

before(async () => {
  core = await bundledCore();
  await core.startBackend();
  const read = await Promise.all(FILES.map(async (name) => [`tfjs/${name}`, await readFile(join(MODEL, name))]));
  contents = { 'config.json': '{}', ...Object.fromEntries(read) };
});

function bytes(files) {
  const made = archive(files);
  return made.buffer.slice(made.byteOffset, made.byteOffset + made.length);
}

function classifierOf(labels, more = {}) {
  const { 'tfjs/learner.json': _, 'tfjs/moments.bin': __, ...network } = contents;
  return { ...network, 'classifier.json': JSON.stringify({ labels, ...more }) };
}

test('a saved learner is the exported one', async () => {
  const { artifact, labels, about } = await core.readSaved('model.keras', bytes(contents));
  const expected = await core.readArtifact(readingFrom(MODEL));
  assert.deepEqual(artifact, expected);
  assert.equal(labels, null);
  assert.match(about, /^model\.keras: a meta-trained initialization for 3 classes of 28 × 28 × 1 images, Adam with/);
});

test('a saved classifier answers by its moving averages, one image as several', async () => {
  const { artifact, labels, about } = await core.readSaved('c.keras', bytes(classifierOf(['cat', 'dog', 7])));
  assert.deepEqual(labels, ['cat', 'dog', '7']);
  assert.match(about, /^c\.keras: a classifier of 28 × 28 × 1 images that has learned cat, dog, 7\./);
  const begin = core.tensorCount();
  const classifier = await core.Classifier.create(artifact);
  const { support } = await readReference(core, readingFrom(MODEL));
  const together = classifier.outputs(support);
  support.forEach((image, i) => assert.ok(difference(classifier.outputs([image])[0], together[i]) < 1e-5));
  const probabilities = classifier.probabilities(support[0]);
  assert.ok(Math.abs(probabilities.reduce((a, b) => a + b) - 1) < 1e-5);
  classifier.dispose();
  assert.equal(core.tensorCount(), begin);
});

test('what is none is named', async () => {
  const cases = [
    [new ArrayBuffer(0), /^x\.keras is no \.keras file/],
    [new TextEncoder().encode('a text, and no archive at all').buffer, /^x\.keras is no \.keras file/],
    [bytes(contents).slice(500), /^x\.keras is no \.keras file|damaged|cut off/],
    [bytes({ 'config.json': '{}' }), /^x\.keras holds no model for this page; .*classify --save/],
    [bytes({ ...contents, 'tfjs/weights.bin': 'short' }), /weights\.bin is damaged/],
    [bytes(classifierOf(['cat', 'dog'])), /has 3 outputs, but not as many labels/],
  ];
  for (const [wrong, message] of cases) {
    await assert.rejects(core.readSaved('x.keras', wrong), (error) => {
      assert.ok(error instanceof core.ModelError, error.stack);
      assert.match(error.message, message);
      return true;
    });
  }
});
