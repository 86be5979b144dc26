/**
 * The browser's computation on few-shot tasks with real drawings: node test/tasks.js FOLDER
 *
 * FOLDER holds tasks.json, {"ways": N, "tasks": T}, and tasks.bin, uint8 pixels of T tasks, each with one drawing of every
 * class to learn from and then one of every class to classify. Prints the predicted class of each query, a list for each
 * task, as JSON. Each query is classified by itself, in a batch with the drawings learned from.
 */

import { MODEL, bundledCore, readingFrom } from './core.js';

const core = await bundledCore();
await core.startBackend();
const artifact = await core.readArtifact(readingFrom(MODEL));
const read = readingFrom(process.argv[2]);
const { ways, tasks } = await core.readJson(read, 'tasks.json');
const pixels = Float32Array.from(new Uint8Array(await read('tasks.bin')), (value) => value * artifact.scale);
const size = pixels.length / (tasks * 2 * ways);
const images = Array.from({ length: tasks * 2 * ways }, (_, i) => pixels.subarray(i * size, (i + 1) * size));

const adaptation = new core.Adaptation(await core.Learner.create(artifact, ways));
const predictions = [];
for (let task = 0; task < tasks; task++) {
  const drawings = images.slice(task * 2 * ways, (task + 1) * 2 * ways);
  adaptation.restart(drawings.slice(0, ways));
  while (adaptation.steps < artifact.innerSteps) adaptation.advance();
  const answers = drawings.slice(ways).map((query) => adaptation.probabilities(query, artifact.innerSteps));
  predictions.push(answers.map((probabilities) => probabilities.indexOf(Math.max(...probabilities))));
}
console.log(JSON.stringify(predictions));
