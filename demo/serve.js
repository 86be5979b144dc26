/** Serves the built page: `node serve.js [PORT]`, 8000 unless given. */

import { listen } from './server.js';

const port = Number(process.argv[2] || 8000);
try {
  if (!Number.isInteger(port) || port < 0 || port > 65535)
    throw new Error(`${process.argv[2]} is not a port: give a number from 0 to 65535`);
  const server = await listen(port);
  console.log(`the demo is at http://localhost:${server.address().port}/ (Ctrl-C ends it)`);
} catch (error) {
  const inUse = error.code === 'EADDRINUSE';
  console.error(inUse ? `port ${port} is in use: choose another, make demo PORT=${port + 1}` : error.message);
  process.exit(1);
}
