/** Builds the page into dist/, which any web server can serve as it is: `node build.js`. */

import { cp, mkdir, readFile, readdir, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

import { build } from 'esbuild';

const HERE = dirname(fileURLToPath(import.meta.url));
const DIST = join(HERE, 'dist');
const MODEL_FILES = ['model.json', 'weights.bin', 'learner.json', 'moments.bin'];
const AT_MOST = 300_000; // bytes of the whole page, gzipped

await rm(DIST, { recursive: true, force: true });
await mkdir(join(DIST, 'model'), { recursive: true });
await build({
  entryPoints: [join(HERE, 'src/page.js'), join(HERE, 'src/worker.js')],
  bundle: true,
  minify: true,
  format: 'esm',
  target: 'es2022',
  outdir: DIST,
  logLevel: 'warning',
});
for (const file of ['index.html', 'style.css']) await cp(join(HERE, 'src', file), join(DIST, file));
for (const file of MODEL_FILES) {
  await cp(join(HERE, 'model', file), join(DIST, 'model', file)).catch(() => {
    console.error(`demo/model/${file} is missing: python -m reptile_tf.tfjs --checkpoint DIR --out demo/model`);
    process.exit(1);
  });
}

const entries = await readdir(DIST, { recursive: true, withFileTypes: true });
let total = 0;
for (const entry of entries.filter((entry) => entry.isFile())) {
  total += gzipSync(await readFile(join(entry.parentPath, entry.name)), { level: 9 }).length;
}
console.log(`demo/dist: ${Math.ceil(total / 1000)} kB gzipped`);
if (total > AT_MOST) {
  console.error(`that is more than the ${AT_MOST / 1000} kB it may be`);
  process.exit(1);
}
