import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';

import { build } from 'esbuild';
import { join } from 'node:path';

import { DEMO, MODEL, bundledCore, difference, readReference, readingFrom } from './core.js';
import { answer, start } from './page.js';

let demo, page;

before(async () => (demo = await start()));
after(() => demo.close());
afterEach(() => page?.context().close());

test('in the browser, logits and weights are those of Keras', async () => {
  page = await demo.open();
  const core = await bundledCore();
  const { steps, arrays, support, query } = await readReference(core, readingFrom(MODEL));
  const bundle = await build({
    entryPoints: [join(DEMO, 'src/core.js')],
    bundle: true,
    format: 'iife',
    globalName: 'core',
    write: false,
  });
  await page.addScriptTag({ content: bundle.outputFiles[0].text });
  const [logitsBefore, logitsAfter, weights, counts] = await page.evaluate(
    async ({ support, query, steps }) => {
      await core.startBackend();
      const learner = await core.Learner.create(await core.readArtifact(core.fetchingFrom('model/')));
      const logits = () => learner.outputs([...support, query]).flat();
      const before = logits();
      const initial = learner.state;
      for (let i = 0; i < steps; i++) learner.step(support);
      const after = logits();
      const weights = learner.names.map((name, i) => [name, [...learner.weights[i]]]);
      const counts = [];
      for (let round = 0; round < 20; round++) {
        learner.state = initial;
        learner.step(support);
        learner.probabilities(support, query);
        counts.push(core.tensorCount());
      }
      return [before, after, weights, counts];
    },
    { support: support.map((image) => [...image]), query: [...query], steps },
  );
  assert.ok(difference(logitsBefore, arrays.logits_before) < 1e-4);
  assert.ok(difference(logitsAfter, arrays.logits_after) < 1e-4);
  for (const [name, values] of weights) assert.ok(difference(values, arrays[`after/${name}`]) < 1e-4, name);
  assert.equal(new Set(counts).size, 1);
});

test('a phone: fingers draw, nothing is cut off', async () => {
  page = await demo.open({ viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true });
  await answer(page);
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= 360, `${width} pixels wide`);
  for (const control of await page.locator('button, select, input[type=range]').all()) {
    const { height } = await control.boundingBox();
    assert.ok(height >= 32, `${await control.getAttribute('id')} is ${height} pixels high`);
  }
  await page.locator('#edit').tap();
  await page.locator('#edit').tap();
  const canvas = page.locator('#input canvas');
  await canvas.scrollIntoViewIfNeeded();
  const scrolled = await page.evaluate(() => scrollY);
  const box = await canvas.boundingBox();
  const touch = await page.context().newCDPSession(page);
  const send = (type, points) =>
    touch.send('Input.dispatchTouchEvent', {
      type,
      touchPoints: points.map(([x, y]) => ({ x: box.x + x * box.width, y: box.y + y * box.height })),
    });
  await send('touchStart', [[0.3, 0.3]]);
  for (let i = 1; i <= 10; i++) await send('touchMove', [[0.3 + 0.04 * i, 0.3 + 0.04 * i]]);
  await send('touchEnd', []);
  assert.match(await canvas.getAttribute('aria-label'), /1 stroke/);
  assert.equal(await page.evaluate(() => scrollY), scrolled);
  await answer(page);
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/phone.png`, fullPage: true });
  assert.deepEqual(page.problems, []);
});

test('dark mode: light ink on dark paper, in the drawings too', async () => {
  const ink = () =>
    page.evaluate(() => {
      const canvas = document.querySelector('#input canvas');
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      const drawn = [...data.keys()].filter((i) => i % 4 === 3 && data[i] === 255);
      return drawn.reduce((sum, i) => sum + data[i - 1], 0) / drawn.length;
    });
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number)[0]);
  page = await demo.open({ colorScheme: 'dark' });
  await answer(page);
  assert.ok((await ink()) > 200 && (await paper()) < 50);
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/dark.png` });
  await page.emulateMedia({ colorScheme: 'light' });
  await page.waitForTimeout(100);
  assert.ok((await ink()) < 60 && (await paper()) > 200);
  assert.deepEqual(
    page.problems.filter((problem) => !problem.includes('willReadFrequently')), // of ink() above
    [],
  );
});

test('works with the network cut off after loading', async () => {
  page = await demo.open();
  await answer(page);
  await page.context().setOffline(true);
  await page.getByLabel('Classes').selectOption('4');
  assert.equal((await answer(page)).length, 4);
  assert.deepEqual(page.foreign, []);
  assert.deepEqual(page.problems, []);
});

for (const [name, file, handler, message] of [
  [
    'missing',
    'weights.bin',
    (route) => route.fulfill({ status: 404 }),
    /weights\.bin is missing \(HTTP 404\).*reptile_tf/,
  ],
  ['cut', 'moments.bin', (route) => route.fulfill({ body: 'short' }), /moments\.bin is damaged \(it has 5 bytes/],
  ['foreign', 'model.json', (route) => route.fulfill({ body: '<html>' }), /model\.json is damaged \(it is no JSON\)/],
  ['unreachable', 'learner.json', (route) => route.abort(), /learner\.json cannot be loaded/],
]) {
  test(`a ${name} model file gives a readable message`, async () => {
    page = await demo.open({ route: { pattern: `**/${file}`, handler } });
    const alert = page.getByRole('alert');
    await alert.filter({ hasText: message }).waitFor({ timeout: 20_000 });
    assert.ok(await alert.isVisible());
  });
}
