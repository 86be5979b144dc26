/**
 * Adapts and classifies beside the page, one inner step at a time, so that new drawings are never waited for.
 *
 * In: {id, support: one image of each class, query: an image or null, steps, trained}, whenever any of these changes;
 * {open: {name, bytes}}, a saved model to use from now on.
 * Out: {ready: {ways, innerSteps, mostSteps, backend, labels, about}} once, and again for a model that was opened; `labels`
 * are those of a classifier, which learns nothing. {answer: {id, probabilities, steps}} while the steps asked for are
 * being taken and after them; {refused: message} of a file; {error: message}.
 */

import { Adaptation } from './adaptation.js';
import { ModelError, fetchingFrom, imageShape, readArtifact } from './artifact.js';
import { startBackend } from './backend.js';
import { Classifier } from './classifier.js';
import { SMALL } from './drawing.js';
import { Learner } from './learner.js';
import { readSaved } from './saved.js';

const MOST_STEPS = 30; // taken ahead, so that the slider answers at once

const ABOUT = 'The model of this page: a meta-trained initialization';

let artifact;
let backend;
let classifier = null; // in place of the adaptations
let wish = null; // the latest message
let ways = 0; // of the adaptations below
let adaptations = {}; // by `trained`: from the meta-trained and from the random initialization
let support = ''; // what they adapt to, as text
let answered = null;
let working = false;
const opening = []; // files that wait

try {
  backend = await startBackend();
  const own = await readArtifact(fetchingFrom(new URL('model/', self.location).href));
  await use({ artifact: own, labels: null, about: `${ABOUT} for ${own.ways} classes.` });
} catch (error) {
  fail(error);
}

self.onmessage = async ({ data }) => {
  if (data.open) return opening.push(data.open) && work();
  wish = data;
  answered = null;
  work();
};

/** Takes a model into use, and says so; throws a ModelError for one that takes no drawings, and nothing changes. */
async function use({ artifact: another, labels, about }) {
  const shape = imageShape(another).join(' × ');
  if (shape !== [SMALL, SMALL, 1].join(' × ')) {
    throw new ModelError(`The model takes images of ${shape}, but drawings are 28 × 28 × 1.`);
  }
  const next = labels ? await Classifier.create(another) : null;
  if (!labels) await adaptationsFor(another.ways, another); // a network that does not load is to be told at once
  classifier?.dispose();
  [artifact, classifier, wish] = [another, next, null];
  const { ways, innerSteps } = artifact;
  postMessage({ ready: { ways, innerSteps, mostSteps: MOST_STEPS, backend, labels, about } });
}

/** Opens a file; a model that does not serve leaves the one in use. */
async function open({ name, bytes }) {
  try {
    await use(await readSaved(name, bytes));
  } catch (error) {
    postMessage({
      refused: error instanceof ModelError ? error.message : `${name} does not work here: ${error.message}`,
    });
  }
}

/** Does one small thing after another, with a look at the messages in between, until nothing is left to do. */
async function work() {
  if (working) return;
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
  if (opening.length) {
    await open(opening.shift());
    return true;
  }
  if (!wish) return false;
  const { id, steps, trained } = wish;
  const query = seen(wish.query);
  if (classifier) {
    if (query && answered === null)
      postMessage({ answer: { id, probabilities: classifier.probabilities(query), steps: 0 } });
    wish = null;
    return false;
  }
  if (!wish.support.length) return false; // a question to a classifier, since replaced: the page asks again
  if (ways !== wish.support.length) await adaptationsFor(wish.support.length);
  const asked = wish.support.join();
  if (asked !== support) {
    for (const adaptation of Object.values(adaptations)) adaptation.restart(wish.support.map(seen));
    support = asked;
  }
  const [shown, other] = [adaptations[trained], adaptations[!trained]];
  const taken = Math.min(steps, shown.steps);
  if (query && answered !== taken) {
    postMessage({ answer: { id, probabilities: shown.probabilities(query, taken), steps: taken } });
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

async function adaptationsFor(number, of = artifact) {
  const made = {};
  for (const trained of [true, false]) made[trained] = new Adaptation(await Learner.create(of, number, trained));
  for (const { learner } of Object.values(adaptations)) learner.dispose();
  [adaptations, ways, support] = [made, number, ''];
}

/** A drawing, 0 ink and 1 paper, as the model has it. */
function seen(image) {
  return image && artifact.paper === 0 ? image.map((value) => 1 - value) : image;
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
