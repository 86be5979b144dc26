/** The built page in a real Chromium, and what a visitor does there. */

import { chromium } from 'playwright-core';

import { listen } from '../server.js';

const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

/** Starts server and browser: {url, open, close}. `open` gives a page of the demo once it has answered. */
export async function start() {
  const server = await listen(0);
  const url = `http://localhost:${server.address().port}/`;
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: FLAGS });
  return {
    url,
    async open({ route, ...options } = {}) {
      const context = await browser.newContext({
        viewport: { width: 900, height: 910 },
        reducedMotion: 'reduce',
        ...options,
      });
      const page = await context.newPage();
      page.problems = [];
      page.on('console', (message) => {
        if (['error', 'warning'].includes(message.type())) page.problems.push(message.text());
      });
      page.on('pageerror', (error) => page.problems.push(error.message));
      page.foreign = []; // requests to anywhere but the folder
      page.on('request', (request) => {
        if (!request.url().startsWith(url) && !request.url().startsWith('data:')) page.foreign.push(request.url());
      });
      if (route) await context.route(route.pattern, route.handler);
      await page.goto(url);
      return page;
    },
    async close() {
      await browser.close();
      server.close();
      server.closeAllConnections();
    },
  };
}

const around = (from, to) =>
  Array.from({ length: 25 }, (_, i) => {
    const angle = from + ((to - from) * i) / 24;
    return [0.5 + 0.28 * Math.cos(angle), 0.5 + 0.28 * Math.sin(angle)];
  });

/** Shapes as a list of strokes; `again` is the same shape from another hand. */
export const SHAPES = {
  circle: [around(-1.5, 4.9)],
  cross: [
    [
      [0.25, 0.25],
      [0.75, 0.75],
    ],
    [
      [0.75, 0.25],
      [0.25, 0.75],
    ],
  ],
  triangle: [
    [
      [0.5, 0.22],
      [0.78, 0.75],
      [0.22, 0.75],
      [0.5, 0.22],
    ],
  ],
};

export function again(shape) {
  return shape.map((stroke) =>
    stroke.map(([x, y]) => [0.52 + 0.85 * (x - 0.5) + 0.06 * (y - 0.5), 0.47 + 0.9 * (y - 0.5)]),
  );
}

/** Draws with the mouse, corner by corner. */
export async function draw(page, canvas, strokes) {
  await canvas.scrollIntoViewIfNeeded();
  const box = await canvas.boundingBox();
  for (const stroke of strokes) {
    const points = stroke.map(([x, y]) => [box.x + x * box.width, box.y + y * box.height]);
    await page.mouse.move(...points[0]);
    await page.mouse.down();
    for (const point of points.slice(1)) await page.mouse.move(...point, { steps: points.length > 10 ? 1 : 12 });
    await page.mouse.up();
  }
}

/** The probabilities shown, once the steps asked for are taken. */
export async function answer(page) {
  await page
    .locator('#status')
    .filter({ hasText: /^Class [A-E], after \d+ inner steps/ })
    .waitFor({ timeout: 60_000 });
  const shown = await page.locator('.percent').allTextContents();
  return shown.map((text) => Number(text.replace('%', '')));
}
