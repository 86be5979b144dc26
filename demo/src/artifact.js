/**
 * The files that `python -m reptile_tf.tfjs` writes, read and checked.
 *
 * An artifact is {topology, weights, moments, ways, filters, paper, innerSteps, scale, weightDecay, optimizer}, its
 * weights and moments being lists of {name, shape, values: Float32Array} in the order of the network's weights, and paper
 * the value of a drawing's background, 0 or 1.
 */

/** Something wrong with the model's files; the message is for the visitor. */
export class ModelError extends Error {}

const EXPORT_AGAIN = 'export it again: python -m reptile_tf.tfjs --checkpoint DIR --out demo/model';

/** A function from the name of a file in the folder at `base` to its bytes. */
export function fetchingFrom(base) {
  return async (name) => {
    let response;
    try {
      response = await fetch(base + name);
    } catch {
      throw new ModelError(`The model file ${name} cannot be loaded: the server of this page does not respond.`);
    }
    if (!response.ok) {
      throw new ModelError(`The model file ${name} is missing (HTTP ${response.status}); ${EXPORT_AGAIN}`);
    }
    return response.arrayBuffer();
  };
}

/** Reads an artifact; `read` gives a file's bytes by its name. Throws a ModelError that names the file at fault. */
export async function readArtifact(read) {
  const [model, learner] = await Promise.all([readModel(read), readJson(read, 'learner.json')]);
  const { ways, optimizer } = learner;
  if (!(ways >= 2) || !['adam', 'sgd'].includes(optimizer?.name) || !Array.isArray(learner.moments)) {
    throw damaged('learner.json', 'it describes no learner');
  }
  if (model.ways !== ways) {
    throw damaged('model.json', `its last layer does not have the ${ways} outputs that learner.json says`);
  }
  return {
    ...model,
    moments: await readArrays(read, 'moments.bin', learner.moments),
    filters: learner.filters,
    paper: learner.paper ?? 1,
    innerSteps: learner.inner_steps,
    scale: learner.scale,
    weightDecay: learner.weight_decay,
    optimizer,
  };
}

/** Reads the network alone: {topology, weights, ways}. */
export async function readModel(read) {
  const model = await readJson(read, 'model.json');
  const topology = model.modelTopology;
  const layers = topology?.model_config?.config?.layers;
  const specs = model.weightsManifest?.[0]?.weights;
  if (!Array.isArray(layers) || !Array.isArray(specs)) throw damaged('model.json', 'it describes no network');
  const last = layers.at(-1);
  const ways = last.class_name === 'Dense' ? last.config.units : 0;
  return { topology, weights: await readArrays(read, 'weights.bin', specs), ways };
}

/** The shape of one image that the network takes: [height, width, channels]. */
export function imageShape(artifact) {
  return artifact.topology.model_config.config.layers[0].config.batch_input_shape.slice(1);
}

/** The arrays of a file, by their names and shapes. */
export async function readArrays(read, file, specs) {
  const bytes = await read(file);
  const sizes = specs.map(({ shape }) => shape.reduce((product, side) => product * side, 1));
  const expected = 4 * sizes.reduce((sum, size) => sum + size, 0);
  if (bytes.byteLength !== expected) throw damaged(file, `it has ${bytes.byteLength} bytes, not ${expected}`);
  let offset = 0;
  return specs.map(({ name, shape }, i) => {
    const values = new Float32Array(bytes, 4 * offset, sizes[i]);
    offset += sizes[i];
    if (!values.every(Number.isFinite)) throw damaged(file, `${name} has values that are no numbers`);
    return { name, shape, values };
  });
}

/** The values of arrays one after another, as bytes. */
export function joined(arrays) {
  const all = new Float32Array(arrays.reduce((length, { values }) => length + values.length, 0));
  let offset = 0;
  for (const { values } of arrays) {
    all.set(values, offset);
    offset += values.length;
  }
  return all.buffer;
}

export async function readJson(read, file) {
  const text = new TextDecoder().decode(await read(file));
  try {
    return JSON.parse(text);
  } catch {
    throw damaged(file, 'it is no JSON');
  }
}

function damaged(file, why) {
  return new ModelError(`The model file ${file} is damaged (${why}); ${EXPORT_AGAIN}`);
}
