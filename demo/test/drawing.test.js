import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { bundledCore } from './core.js';
import { SHAPES } from './page.js';

let image;

before(async () => ({ image } = await bundledCore()));

/** The rows and columns that have ink: [top, bottom, left, right], and its share of all pixels. */
function ink(pixels) {
  const at = [...pixels.keys()].filter((i) => pixels[i] === 0);
  const [rows, columns] = [at.map((i) => Math.floor(i / 28)), at.map((i) => i % 28)];
  const box = [Math.min(...rows), Math.max(...rows), Math.min(...columns), Math.max(...columns)];
  return { box, share: at.length / pixels.length };
}

const scaled = (shape, factor, dx = 0, dy = 0) =>
  shape.map((stroke) => stroke.map(([x, y]) => [0.5 + factor * (x - 0.5) + dx, 0.5 + factor * (y - 0.5) + dy]));

test('ink is 0 on 1, as much of it as in Omniglot', () => {
  for (const shape of Object.values(SHAPES)) {
    const pixels = image(shape);
    assert.deepEqual(new Set(pixels), new Set([0, 1]));
    const { share } = ink(pixels);
    assert.ok(share > 0.0375 && share < 0.133, `${share}`); // where 90 % of Omniglot's drawings are
  }
});

test('lines are as wide as in Omniglot: 5.6 of 105 pixels, so one or two of 28', () => {
  const { box } = ink(image([[[0.5, 0.2], [0.5, 0.8]]])); // prettier-ignore
  assert.ok(box[3] - box[2] <= 1, `${box}`);
  const widths = Array.from({ length: 40 }, (_, i) => {
    const x = 0.42 + i / 250;
    const { box } = ink(image([[[x, 0.2], [x, 0.8]]])); // prettier-ignore
    return box[3] - box[2] + 1;
  });
  const mean = widths.reduce((a, b) => a + b) / widths.length;
  assert.ok(mean > 1.2 && mean < 1.8, `${mean}`); // 5.6 / 3.75 = 1.5
});

test('drawings too large, too small or off the middle come to Omniglot’s size and place', () => {
  for (const [factor, dx, dy] of [
    [0.3, 0.3, 0.3],
    [1.7, 0, 0],
    [0.5, -0.25, 0.1],
  ]) {
    // prettier-ignore
    const { box } = ink(image(scaled(SHAPES.circle, factor, dx, dy)));
    const side = Math.max(box[1] - box[0], box[3] - box[2]) + 1;
    assert.ok(side >= 11 && side <= 25, `${factor}: ${side}`); // 43 to 89 of 105 pixels
    const middle = [(box[0] + box[1] + 1) / 2, (box[2] + box[3] + 1) / 2];
    for (const at of middle) assert.ok(at >= 10 && at <= 17, `${factor}: ${middle}`);
  }
});

test('a drawing of the usual size and place stays where it is', () => {
  const upper = ink(image(scaled(SHAPES.cross, 1, 0, -0.05))).box;
  const lower = ink(image(scaled(SHAPES.cross, 1, 0, 0.05))).box;
  assert.ok([2, 3].includes(lower[0] - upper[0]), `${upper} and ${lower}`); // 0.1 of 28 rows
  assert.deepEqual(lower.slice(2), upper.slice(2));
});

test('dots stay dots, nothing is nothing', () => {
  assert.ok(ink(image([[[0.5, 0.5]]])).share < 0.01);
  assert.equal(image([]), null);
});
