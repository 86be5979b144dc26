import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { archive } from './archive.js';
import { MODEL } from './core.js';
import { SHAPES, again, answer, draw, start } from './page.js';

const SCREENSHOT = join(dirname(fileURLToPath(import.meta.url)), '../../docs/demo.png');
const [CIRCLE, CROSS, TRIANGLE] = Object.values(SHAPES);

let demo, page;

before(async () => (demo = await start()));
after(() => demo.close());
afterEach(() => page?.context().close());

const pad = (index) => page.locator('#training canvas').nth(index);
const input = () => page.locator('#input canvas');
const button = (name) => page.getByRole('button', { name, exact: true });
const strokes = async (canvas) => Number.parseInt((await canvas.getAttribute('aria-label')).split(': ')[1]) || 0;

function clean() {
  assert.deepEqual(page.problems, []);
  assert.deepEqual(page.foreign, []);
}

async function teach(shapes) {
  await button('Edit All').click();
  await button('Erase All').click();
  for (const [index, shape] of shapes.entries()) await draw(page, pad(index), shape);
}

test('opens on an example that it classifies rightly, and names its backend', async () => {
  page = await demo.open();
  const probabilities = await answer(page);
  assert.equal(probabilities.length, 3);
  assert.ok(probabilities[0] > 60, `${probabilities}`);
  assert.match(await page.locator('footer').textContent(), /TensorFlow\.js 4\.22\.0, CPU backend/);
  assert.match(await page.locator('#status').textContent(), /^Class A, after 10 inner steps/);
  clean();
});

test('a circle, a cross and a triangle are learned and recognized', async () => {
  page = await demo.open();
  await answer(page);
  await teach([CIRCLE, CROSS, TRIANGLE]);
  await button('Edit').click();
  for (const [label, shape] of [CIRCLE, CROSS, TRIANGLE].entries()) {
    await button('Erase').click();
    await draw(page, input(), again(shape));
    const probabilities = await answer(page);
    assert.ok(probabilities[label] > 60, `shape ${label}: ${probabilities}`);
    if (shape === TRIANGLE) await page.screenshot({ path: SCREENSHOT, fullPage: true });
  }
  clean();
});

test('from the last stroke to the answer it takes less than half a second (median of five)', async () => {
  page = await demo.open();
  await answer(page);
  await button('Edit').click();
  const times = [];
  for (let round = 0; round < 5; round++) {
    await button('Erase').click();
    await page.evaluate(() => {
      const canvas = document.querySelector('#input canvas');
      canvas.addEventListener('pointerup', () => (window.lifted = performance.now()), { capture: true, once: true });
      window.answeredAfter = new Promise((resolve) => {
        const look = () => /^Class/.test(status.textContent) && resolve(performance.now() - window.lifted);
        const status = document.getElementById('status');
        new MutationObserver(look).observe(status, { childList: true });
      });
    });
    await draw(page, input(), [CROSS[0]]);
    times.push(await page.evaluate(() => window.answeredAfter));
  }
  const median = times.toSorted((a, b) => a - b)[2];
  console.log(`last stroke to answer: ${Math.round(median)} ms`);
  assert.ok(median > 0 && median < 500, `${times} ms`);
});

test('erase, undo and draw anew', async () => {
  page = await demo.open();
  const before = await answer(page);
  await draw(page, pad(0), CROSS); // locked, but a press unlocks
  assert.equal(await strokes(pad(0)), 2 + 1);
  assert.ok(await button('Erase All').isVisible());
  await button('Erase All').click();
  for (const index of [0, 1, 2]) assert.equal(await strokes(pad(index)), 0);
  assert.equal(await page.locator('#status').textContent(), 'Draw an example of class A.');
  assert.deepEqual(await page.locator('.percent').allTextContents(), ['–', '–', '–']);
  await page.locator('#undo-all').click();
  await page.locator('#undo-all').click();
  assert.ok(await page.locator('#undo-all').isDisabled());
  assert.deepEqual(await answer(page), before);
  await button('Erase All').click();
  for (const [index, shape] of [TRIANGLE, CIRCLE, CROSS].entries()) await draw(page, pad(index), shape);
  await button('Edit').click();
  await button('Erase').click();
  assert.match(await page.locator('#status').textContent(), /^Draw a query/);
  await draw(page, input(), again(CIRCLE));
  assert.ok((await answer(page))[1] > 60);
  clean();
});

test('the number of classes goes from 2 to 5', async () => {
  page = await demo.open();
  for (const ways of [5, 2, 4]) {
    await answer(page);
    await page.getByLabel('Classes').selectOption(`${ways}`);
    const probabilities = await answer(page);
    assert.equal(probabilities.length, ways);
    assert.equal(await page.locator('#training canvas').count(), ways);
    assert.ok(Math.abs(probabilities.reduce((a, b) => a + b) - 100) <= 3, `${probabilities}`);
    assert.equal(probabilities.indexOf(Math.max(...probabilities)), 0, `${ways}: ${probabilities}`);
  }
  clean();
});

test('steps and initialization show what meta-training buys', async () => {
  page = await demo.open();
  const [trained] = await answer(page);
  const slider = page.locator('#steps');
  await slider.fill('0');
  const untaught = await answer(page);
  assert.match(await page.locator('#status').textContent(), /after 0 inner steps/);
  assert.ok(untaught[0] < trained - 10, `${untaught[0]} and ${trained}`);
  await slider.fill('10');
  await page.getByLabel('random weights').check();
  const random = await answer(page);
  assert.notEqual(random[0], trained); // on shapes this simple random weights may do well, too
  await page.getByLabel('Reptile’s initialization').check();
  assert.deepEqual((await answer(page))[0], trained);
  clean();
});

test('drawing goes on while the network trains', async () => {
  page = await demo.open();
  await answer(page);
  await teach([CIRCLE, CROSS, TRIANGLE]);
  const longest = await page.evaluate(async () => {
    const times = [performance.now()];
    while (times.at(-1) - times[0] < 1000) {
      await new Promise(requestAnimationFrame);
      times.push(performance.now());
    }
    return Math.max(...times.slice(1).map((time, i) => time - times[i]));
  });
  assert.ok(longest < 250, `the page stood still for ${longest} ms`);
});

test('keys alone can draw', async () => {
  page = await demo.open();
  await answer(page);
  await input().focus();
  await page.keyboard.press('Enter');
  await button('Erase').press('Enter');
  await input().focus();
  for (const key of ['Space', 'ArrowRight', 'ArrowRight', 'ArrowDown', 'Space']) await page.keyboard.press(key);
  assert.equal(await strokes(input()), 1);
  await answer(page);
  await page.keyboard.press('Control+z');
  assert.equal(await strokes(input()), 0);
  clean();
});

test('a saved model is opened, says what it is, and classifies; another file changes nothing', async () => {
  page = await demo.open();
  await answer(page);
  assert.match(await page.locator('#about').textContent(), /^The model of this page: .* for 3 classes\.$/);
  const part = async (name) => [`tfjs/${name}`, await readFile(join(MODEL, name))];
  const network = Object.fromEntries(await Promise.all(['model.json', 'weights.bin'].map(part)));
  const learner = Object.fromEntries(await Promise.all(['learner.json', 'moments.bin'].map(part)));
  const open = (name, files) =>
    page.locator('#file').setInputFiles({ name, mimeType: 'application/zip', buffer: archive(files) });

  await open('animals.keras', { ...network, 'classifier.json': JSON.stringify({ labels: ['cat', 'dog', 'emu'] }) });
  await page.locator('#about').filter({ hasText: 'animals.keras: a classifier of' }).waitFor();
  await page
    .locator('#status')
    .filter({ hasText: /^(cat|dog|emu)\.$/ })
    .waitFor();
  assert.deepEqual(await page.locator('.label').allTextContents(), ['cat', 'dog', 'emu']);
  assert.ok(!(await page.locator('#training').isVisible()));
  assert.ok(!(await page.locator('#steps').isVisible()));
  const shown = (await page.locator('.percent').allTextContents()).map((text) => Number(text.replace('%', '')));
  assert.ok(Math.abs(shown.reduce((a, b) => a + b) - 100) <= 2, `${shown}`);

  await open('notes.keras', { 'config.json': '{}' });
  await page
    .locator('#refused')
    .filter({ hasText: /^notes\.keras holds no model for this page/ })
    .waitFor();
  assert.match(await page.locator('#about').textContent(), /^animals\.keras/);

  await open('model.keras', { ...network, ...learner });
  await page
    .locator('#about')
    .filter({ hasText: 'model.keras: a meta-trained initialization for 3 classes' })
    .waitFor();
  assert.ok(!(await page.locator('#refused').isVisible()));
  const probabilities = await answer(page);
  assert.ok(probabilities[0] > 60, `${probabilities}`);
  clean();
});
