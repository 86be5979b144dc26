/** The demo's own modules for Node, bundled as for the page, and its model files. */

import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { build } from 'esbuild';

export const DEMO = dirname(dirname(fileURLToPath(import.meta.url)));
/** The folder of the model under test. */
export const MODEL = process.env.DEMO_MODEL ?? join(DEMO, 'model');

export async function bundledCore() {
  const folder = await mkdtemp(join(tmpdir(), 'reptile-demo-'));
  const outfile = join(folder, 'core.cjs');
  try {
    await build({
      entryPoints: [join(DEMO, 'src/core.js')],
      bundle: true,
      platform: 'node',
      mainFields: ['module', 'main'], // else other copies of TensorFlow.js than the page's
      format: 'cjs',
      outfile,
      logLevel: 'warning',
    });
    return createRequire(import.meta.url)(outfile);
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** A function from a file's name to its bytes. */
export function readingFrom(folder) {
  return async (name) => {
    const bytes = await readFile(join(folder, name));
    return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  };
}

/** The reference that Keras wrote: arrays by name, and the images of its support set. */
export async function readReference(core, read) {
  const { steps, arrays } = await core.readJson(read, 'reference.json');
  const listed = await core.readArrays(read, 'reference.bin', arrays);
  const byName = Object.fromEntries(listed.map(({ name, values }) => [name, values]));
  const ways = arrays.find(({ name }) => name === 'support').shape[0];
  const size = byName.support.length / ways;
  const support = Array.from({ length: ways }, (_, i) => byName.support.slice(i * size, (i + 1) * size));
  return { steps, arrays: byName, support, query: byName.query };
}

/** The largest difference between two lists of numbers. */
export function difference(ours, expected) {
  if (ours.length !== expected.length) throw new Error(`${ours.length} numbers, not ${expected.length}`);
  return ours.reduce((worst, value, i) => Math.max(worst, Math.abs(value - expected[i])), 0);
}
