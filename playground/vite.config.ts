import { defineConfig } from "vite";

// The page is served at /playground and its files below /playground/, perhaps behind a proxy's prefix. Addresses are
// therefore relative to the page, and names carry no hash: the server tells caches by ETag.
export default defineConfig({
  base: "./",
  experimental: { renderBuiltUrl: (file, { hostType }) => (hostType === "html" ? `playground/${file}` : { relative: true }) },
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
