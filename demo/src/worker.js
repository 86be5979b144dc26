/**
 * Adapts and classifies beside the page, one inner step at a time, so that new drawings are never waited for.
 *
 * In: {id, support: one image of each class, query: an image or null, steps, trained}, whenever any of these changes.
 * Out: {ready: {ways, innerSteps, mostSteps, backend}} once; {answer: {id, probabilities, steps}} while the steps asked
 * for are being taken and after them; {error: message}.
 */

import { Adaptation } from './adaptation.js';
import { ModelError, fetchingFrom, imageShape, readArtifact } from './artifact.js';
import { startBackend } from './backend.js';
import { SMALL } from './drawing.js';
import { Learner } from './learner.js';

const MOST_STEPS = 30; // taken ahead, so that the slider answers at once

let artifact;
let wish = null; // the latest message
let ways = 0; // of the adaptations below
let adaptations = {}; // by `trained`: from the meta-trained and from the random initialization
let support = ''; // what they adapt to, as text
let answered = null;
let working = false;

try {
  const backend = await startBackend();
  artifact = await readArtifact(fetchingFrom(new URL('model/', self.location).href));
  if (imageShape(artifact).join() !== [SMALL, SMALL, 1].join()) {
    throw new ModelError(
      `The model takes images of ${imageShape(artifact).join(' × ')}, but drawings are 28 × 28 × 1.`,
    );
  }
  await adaptationsFor(artifact.ways); // a network that does not load is to be told at once
  postMessage({ ready: { ways: artifact.ways, innerSteps: artifact.innerSteps, mostSteps: MOST_STEPS, backend } });
} catch (error) {
  fail(error);
}

self.onmessage = ({ data }) => {
  wish = data;
  answered = null;
  if (!working) work();
};

/** Does one small thing after another, with a look at the messages in between, until nothing is left to do. */
async function work() {
  working = true;
  try {
    while (await next()) await messages();
  } catch (error) {
    fail(error);
  }
  working = false;
}

/** Does the most urgent thing; whether there was one. */
async function next() {
  const { id, steps, trained, query } = wish;
  if (ways !== wish.support.length) await adaptationsFor(wish.support.length);
  const asked = wish.support.join();
  if (asked !== support) {
    for (const adaptation of Object.values(adaptations)) adaptation.restart(wish.support);
    support = asked;
  }
  const [shown, other] = [adaptations[trained], adaptations[!trained]];
  const taken = Math.min(steps, shown.steps);
  if (query && answered !== taken) {
    postMessage({ answer: { id, probabilities: shown.classify(query, taken), steps: taken } });
    answered = taken;
  } else if (shown.steps < Math.max(steps, MOST_STEPS)) {
    shown.advance();
  } else if (other.steps < MOST_STEPS) {
    other.advance();
  } else {
    return false;
  }
  return true;
}

async function adaptationsFor(number) {
  for (const { learner } of Object.values(adaptations)) learner.dispose();
  adaptations = {};
  for (const trained of [true, false]) {
    adaptations[trained] = new Adaptation(await Learner.create(artifact, number, trained));
  }
  [ways, support] = [number, ''];
}

/** Lets waiting messages in. */
function messages() {
  return new Promise((resolve) => setTimeout(resolve));
}

function fail(error) {
  const text =
    error instanceof ModelError ? error.message : `The model does not work in this browser: ${error.message}`;
  postMessage({ error: text });
}
