/** The page: drawings go to the worker, its answers go to the bars. */

import { image } from './drawing.js';
import { CLASSES, QUERY } from './examples.js';
import { Group } from './group.js';
import { Pad } from './pad.js';

const WAYS = [2, 3, 4, 5];
const NAMES = ['A', 'B', 'C', 'D', 'E'];

const at = (id) => document.getElementById(id);
const worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
const training = new Group(at('edit-all'), at('undo-all'), ask);
const testing = new Group(at('edit'), at('undo'), ask);
const input = new Pad('Query', null);
const bars = []; // {row, picture, fill, percent} for each class
let ready = false;
let labels = null; // of a classifier, which is used as it is
let id = 0; // of the latest question

worker.onmessage = ({ data }) => {
  if (data.ready) start(data.ready);
  if (data.answer) show(data.answer);
  if (data.refused) refuse(data.refused);
  if (data.error) complain(data.error);
};
worker.onerror = (event) => complain(`The page’s worker could not start: ${event.message ?? 'worker.js is missing'}`);

at('input').append(input.canvas);
testing.add(input);
input.show(QUERY);
for (const ways of WAYS) at('classes').add(new Option(ways, ways, ways === 3, ways === 3));
setWays(3);
at('classes').addEventListener('change', () => {
  setWays(Number(at('classes').value));
  ask();
});
at('initialization').addEventListener('change', ask);
at('steps').addEventListener('input', ask);
at('file').addEventListener('change', async () => {
  const [file] = at('file').files;
  if (!file) return;
  const bytes = await file.arrayBuffer().catch((error) => refuse(`${file.name} cannot be read: ${error.message}`));
  at('file').value = ''; // so that the same file may be chosen again
  if (bytes) worker.postMessage({ open: { name: file.name, bytes } }, [bytes]);
});
// The ink's colour is the theme's.
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  for (const pad of [...training.pads, input, ...bars.map(({ picture }) => picture)]) pad?.paint();
});

function start({ ways, innerSteps, mostSteps, backend, labels: known, about }) {
  ready = true;
  labels = known;
  at('backend').textContent = `: ${backend} backend`;
  at('about').textContent = about;
  at('refused').hidden = true;
  for (const part of ['learning-data', 'learning']) at(part).hidden = Boolean(labels);
  if (labels) {
    while (bars.length) bars.pop().row.remove();
    for (const index of labels.keys()) bars.push(newBar(index));
  } else {
    at('steps').max = mostSteps;
    at('steps').value = innerSteps;
    setWays(WAYS.includes(ways) ? ways : training.pads.length);
  }
  ask();
}

/** Adds or takes away classes; a new one has an example's drawing as long as the others have. */
function setWays(ways) {
  at('classes').value = ways;
  while (training.pads.length > ways) training.drop();
  while (training.pads.length < ways) {
    const index = training.pads.length;
    const pad = new Pad(`Class ${NAMES[index]}`, null);
    at('training').append(pad.canvas);
    training.add(pad);
    pad.show(training.locked ? CLASSES[index] : []);
  }
  while (bars.length) bars.pop().row.remove();
  for (const index of training.pads.keys()) bars.push(newBar(index));
  at('training').style.setProperty('--count', ways);
}

function newBar(index) {
  const row = document.createElement('li');
  const picture = labels ? null : new Pad(`Class ${NAMES[index]}`, null);
  const head = picture?.canvas ?? document.createElement('span');
  if (picture) picture.canvas.tabIndex = -1;
  else Object.assign(head, { className: 'label', textContent: labels[index], title: labels[index] });
  const bar = document.createElement('div');
  bar.className = 'bar';
  const fill = document.createElement('div');
  bar.append(fill);
  const percent = document.createElement('span');
  percent.className = 'percent';
  row.append(head, bar, percent);
  at('bars').append(row);
  return { row, picture, fill, percent };
}

/** Sends the worker what is to be learned and classified now. */
function ask() {
  if (!labels) training.pads.forEach((pad, i) => bars[i].picture.show(pad.strokes));
  if (!ready) return;
  id++;
  const steps = Number(at('steps').value);
  at('steps-shown').textContent = steps;
  const support = labels ? [] : training.pads.map((pad) => image(pad.strokes));
  const query = image(input.strokes);
  const empty = support.findIndex((drawing) => !drawing);
  if (empty >= 0 || !query) clear();
  if (empty >= 0) return say(`Draw an example of class ${NAMES[empty]}.`);
  say(query ? (labels ? '' : 'Learning …') : 'Draw a query: one of the classes.');
  const trained = document.querySelector('[name=start]:checked').value === 'trained';
  worker.postMessage({ id, support, query, steps, trained });
}

function show({ id: answered, probabilities, steps }) {
  if (answered !== id) return; // to an earlier question
  const wanted = Number(at('steps').value);
  const best = probabilities.indexOf(Math.max(...probabilities));
  probabilities.forEach((probability, i) => {
    const text = `${Math.round(100 * probability)}%`;
    bars[i].fill.style.width = `${100 * probability}%`;
    bars[i].percent.textContent = text;
    bars[i].row.classList.toggle('best', i === best);
  });
  if (labels) return say(`${labels[best]}.`);
  say(steps < wanted ? `Learning: step ${steps} of ${wanted} …` : `Class ${NAMES[best]}, after ${steps} inner steps.`);
}

function clear() {
  for (const { row, fill, percent } of bars) {
    row.classList.remove('best');
    fill.style.width = '0';
    percent.textContent = '–';
  }
}

function say(text) {
  at('status').textContent = text;
}

/** Says what is wrong with a file; the model in use stays. */
function refuse(message) {
  at('refused').hidden = false;
  at('refused').textContent = message;
}

function complain(message) {
  ready = false;
  at('error').hidden = false;
  at('error').textContent = message;
  clear();
  say('');
}
