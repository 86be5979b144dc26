import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { MODEL, bundledCore, difference, readReference, readingFrom } from './core.js';

let core, artifact, reference;

before(async () => {
  core = await bundledCore();
  await core.startBackend();
  artifact = await core.readArtifact(readingFrom(MODEL));
  reference = await readReference(core, readingFrom(MODEL));
});

function close(ours, expected, tolerance = 1e-4) {
  const worst = difference(ours, expected);
  assert.ok(worst <= tolerance, `off by ${worst}`);
}

test('logits and weights are those of Keras before and after warm steps', async () => {
  const learner = await core.Learner.create(artifact);
  const { arrays, support, query } = reference;
  close(learner.outputs([...support, query]).flat(), arrays.logits_before);
  const first = learner.weights;
  for (let i = 0; i < reference.steps; i++) learner.step(support);
  close(learner.outputs([...support, query]).flat(), arrays.logits_after);
  assert.ok(difference(arrays.logits_before, arrays.logits_after) > 0.1, 'the steps change too little to tell');
  learner.names.forEach((name, i) => {
    close(learner.weights[i], arrays[`after/${name}`]);
    assert.ok(difference(first[i], arrays[`after/${name}`]) > 1e-4, `${name} does not move`);
  });
  learner.dispose();
});

test('cold moments would not do', async () => {
  const learner = await core.Learner.create(artifact);
  learner.state = { ...learner.state, moments: learner.moments.map((m) => m.map(() => 0)), count: 0 };
  for (let i = 0; i < reference.steps; i++) learner.step(reference.support);
  const logits = learner.outputs([...reference.support, reference.query]).flat();
  assert.ok(difference(logits, reference.arrays.logits_after) > 1e-2);
  learner.dispose();
});

test('no tensor is left behind', async () => {
  const begin = core.tensorCount();
  const learner = await core.Learner.create(artifact);
  const adaptation = new core.Adaptation(learner);
  const counts = [];
  for (let round = 0; round < 20; round++) {
    adaptation.restart(reference.support);
    adaptation.advance();
    adaptation.probabilities(reference.query, 1);
    counts.push(core.tensorCount());
  }
  assert.deepEqual(new Set(counts).size, 1);
  learner.dispose();
  assert.equal(core.tensorCount(), begin);
});

test('an adaptation comes back to every step', async () => {
  const { support, query } = reference;
  const learner = await core.Learner.create(artifact);
  const adaptation = new core.Adaptation(learner);
  adaptation.restart(support);
  const answers = [adaptation.probabilities(query, 0)];
  for (let steps = 1; steps <= 3; steps++) {
    adaptation.advance();
    answers.push(adaptation.probabilities(query, steps));
  }
  for (const steps of [2, 0, 3, 1]) assert.deepEqual(adaptation.probabilities(query, steps), answers[steps]);
  assert.notDeepEqual(answers[0], answers[3]);
  adaptation.restart([...support].reverse());
  assert.equal(adaptation.steps, 0);
  adaptation.advance();
  assert.ok(difference(adaptation.probabilities(query, 1), answers[1]) > 1e-6, 'it still knows the old drawings');
  learner.dispose();
});

test('any number of classes is learned', async () => {
  const backwards = reference.support.map((image) => image.slice().reverse());
  const images = [...reference.support, reference.query, ...backwards];
  for (const ways of [2, 4, 5, 7].filter((ways) => ways !== artifact.ways)) {
    const learner = await core.Learner.create(artifact, ways);
    const support = images.slice(0, ways);
    const columns = learner.weights[learner.names.indexOf('logits/kernel')];
    for (let one = 1; one < ways; one++) {
      for (let other = 0; other < one; other++) {
        const [a, b] = [one, other].map((column) => columns.filter((_, i) => i % ways === column));
        assert.ok(difference(a, b) > 1e-3, `columns ${one} and ${other} of ${ways} are the same`);
      }
    }
    for (let i = 0; i < 10; i++) learner.step(support);
    support.forEach((image, label) => {
      const probabilities = learner.probabilities(support, image);
      close([probabilities.reduce((a, b) => a + b)], [1], 1e-5);
      assert.ok(probabilities[label] > 0.6, `class ${label} of ${ways}: ${probabilities}`);
    });
    learner.dispose();
  }
});

test('random initialization is random, fresh, and of the right size', async () => {
  const [one, other] = [await core.Learner.create(artifact, 3, false), await core.Learner.create(artifact, 3, false)];
  const kernel = one.names.indexOf('conv2/kernel');
  assert.ok(difference(one.weights[kernel], other.weights[kernel]) > 0.01);
  const limit = Math.sqrt(6 / (2 * 9 * artifact.filters)); // Glorot's uniform distribution, as in Keras
  const largest = one.weights[kernel].reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  assert.ok(largest <= limit && largest > 0.95 * limit, `${largest} of ${limit}`);
  assert.equal(one.count, 0);
  assert.ok(one.moments.every((moments) => moments.every((m) => m === 0)));
  [one, other].forEach((learner) => learner.dispose());
});

test('damaged files are named', async () => {
  const read = readingFrom(MODEL);
  const damage = {
    'model.json': ['<!doctype html>', '{}'],
    'learner.json': ['{"ways": 3', '{}'],
    'weights.bin': ['short', ''],
    'moments.bin': ['short', ''],
  };
  for (const [file, contents] of Object.entries(damage)) {
    for (const content of contents) {
      const damaged = async (name) => (name === file ? new TextEncoder().encode(content).buffer : read(name));
      await assert.rejects(core.readArtifact(damaged), (error) => {
        assert.ok(error instanceof core.ModelError, error.stack);
        assert.match(error.message, new RegExp(`^The model file ${file} is damaged .*reptile_tf.tfjs`));
        return true;
      });
    }
  }
  const nan = async (name) =>
    name === 'weights.bin' ? new Float32Array((await read(name)).byteLength / 4).fill(NaN).buffer : read(name);
  await assert.rejects(core.readArtifact(nan), /weights.bin is damaged .*no numbers/);
});
