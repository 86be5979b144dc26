/** What the worker and the tests compute with, in one module. */

export * from './adaptation.js';
export * from './artifact.js';
export * from './backend.js';
export * from './classifier.js';
export * from './drawing.js';
export * from './learner.js';
export * from './saved.js';
