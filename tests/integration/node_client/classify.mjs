// A client nobody of the Python side wrote: node classify.mjs PROTO_DIR SERVER IMAGE [MODEL] prints the answer as JSON.
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [protoDir, server, image, model = ""] = process.argv.slice(2);
const definition = loader.loadSync("mobilevision/v1/vision.proto", {
  includeDirs: [protoDir],
  enums: String,
  keepCase: true,
});
const { VisionService } = grpc.loadPackageDefinition(definition).mobilevision.v1;
const client = new VisionService(server, grpc.credentials.createInsecure());
const call = client.Classify(
  { model, image: readFileSync(image) },
  { deadline: Date.now() + 30000 },
  (error, reply) => {
    if (error) {
      console.log(JSON.stringify({ code: error.code, details: error.details }));
      process.exitCode = 1;
    } else {
      console.log(JSON.stringify(reply));
    }
    client.close();
  },
);
