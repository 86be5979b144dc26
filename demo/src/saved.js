/**
 * A .keras file that a run or `reptile_tf.classify` saved, opened in the page.
 *
 * It is a zip archive. In its folder tfjs/ lie, not compressed, the files that `python -m reptile_tf.tfjs` writes: of a
 * learner, or of a classifier that has learned its classes and is used as it is; of this, classifier.json says more.
 */

import { ModelError, imageShape, readArtifact, readJson, readModel } from './artifact.js';

const END = 0x06054b50; // signatures of a zip archive's records
const ENTRY = 0x02014b50;

/**
 * Reads a file's bytes: {artifact, labels, about}. `labels` are a classifier's; a learner has none. `about` says what it
 * is, to the visitor. Throws a ModelError if the file is something else.
 */
export async function readSaved(name, bytes) {
  const entries = unpacked(name, bytes);
  const read = async (file) => {
    if (!entries.has(file)) throw new ModelError(`${name} has no ${file}: it was cut off, or changed.`);
    return entries.get(file);
  };
  if (!entries.has('tfjs/model.json')) {
    throw new ModelError(
      `${name} holds no model for this page; python -m reptile_tf.classify --save writes one, and so does a run.`,
    );
  }
  const inFolder = (file) => read(`tfjs/${file}`);
  if (entries.has('tfjs/learner.json')) {
    const artifact = await readArtifact(inFolder);
    const optimizer = artifact.optimizer.name === 'adam' ? 'Adam with its trained moments' : 'SGD';
    const about = `${name}: a meta-trained initialization for ${artifact.ways} classes of ${size(artifact)} images, ${optimizer}.`;
    return { artifact, labels: null, about };
  }
  const artifact = await readModel(inFolder);
  const { labels, paper = 1 } = await readJson(read, 'classifier.json');
  if (!Array.isArray(labels) || labels.length !== artifact.ways) {
    throw new ModelError(`${name} is damaged: it has ${artifact.ways} outputs, but not as many labels.`);
  }
  const about = `${name}: a classifier of ${size(artifact)} images that has learned ${labels.join(', ')}. It learns nothing new here.`;
  return { artifact: { ...artifact, paper }, labels: labels.map(String), about };
}

function size(artifact) {
  return imageShape(artifact).join(' × ');
}

/** The entries of a zip archive that are not compressed, by name. */
function unpacked(name, bytes) {
  const view = new DataView(bytes);
  const broken = new ModelError(`${name} is no .keras file: choose one that a run or reptile_tf.classify saved.`);
  try {
    let end = view.byteLength - 22;
    while (view.getUint32(end, true) !== END) end--;
    const entries = new Map();
    let at = view.getUint32(end + 16, true);
    for (let count = view.getUint16(end + 10, true); count > 0; count--) {
      if (view.getUint32(at, true) !== ENTRY) throw broken;
      const [method, length] = [view.getUint16(at + 10, true), view.getUint32(at + 24, true)];
      const [nameLength, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
      const start = view.getUint32(at + 42, true);
      const entry = new TextDecoder().decode(new Uint8Array(bytes, at + 46, nameLength));
      // The local header has lengths of its own.
      const begin = start + 30 + view.getUint16(start + 26, true) + view.getUint16(start + 28, true);
      if (method === 0) entries.set(entry, bytes.slice(begin, begin + length));
      at += 46 + nameLength + extra + comment;
    }
    return entries;
  } catch {
    throw broken; // a number outside of the file
  }
}
