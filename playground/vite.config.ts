import { readFileSync } from "node:fs";
import { defineConfig, type Plugin } from "vite";

const BUNDLED = ["@preact/signals", "@preact/signals-core", "preact", "uplot"];

/** The licences of what the bundle contains ask to be passed on. */
const licences: Plugin = {
  name: "licences",
  generateBundle() {
    const texts = BUNDLED.map((name) => {
      const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8"));
      return `${name} ${version}\n\n${readFileSync(`node_modules/${name}/LICENSE`, "utf8").trim()}\n`;
    });
    this.emitFile({ type: "asset", fileName: "licences.txt", source: texts.join("\n----\n\n") });
  },
};

// The page is served at /playground and its files below /playground/, perhaps behind a proxy's prefix. Addresses are
// therefore relative to the page, and names carry no hash: the server tells caches by ETag.
export default defineConfig({
  plugins: [licences],
  base: "./",
  experimental: {
    renderBuiltUrl: (file, { hostType }) => (hostType === "html" ? `playground/${file}` : { relative: true }),
  },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: process.env.PLAYGROUND_OUT ?? "../server/playground/dist",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    assetsInlineLimit: 0,
    reportCompressedSize: false,
    rollupOptions: {
      output: {
        entryFileNames: "playground.js",
        chunkFileNames: "[name].js",
        assetFileNames: "[name][extname]",
        codeSplitting: false,
      },
    },
  },
});
