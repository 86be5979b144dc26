/**
 * Takes the reference's inner steps with any exported model: node test/steps.js FOLDER
 *
 * Prints {before, after, weights: {name: values}, tensors} as JSON: the logits of support set and query before and after, the
 * adapted weights, and the number of tensors after each step.
 */

import { bundledCore, readReference, readingFrom } from './core.js';

const core = await bundledCore();
await core.startBackend();
const read = readingFrom(process.argv[2]);
const learner = await core.Learner.create(await core.readArtifact(read));
const { steps, support, query } = await readReference(core, read);
const logits = () => learner.outputs([...support, query]);
const [before, tensors] = [logits(), []];
for (let i = 0; i < steps; i++) {
  learner.step(support);
  tensors.push(core.tensorCount());
}
const weights = Object.fromEntries(learner.names.map((name, i) => [name, [...learner.weights[i]]]));
console.log(JSON.stringify({ before, after: logits(), weights, tensors }));
