// Files of images to pictures, as read_image of sam_hf/pixels.py: upright, transparent ones on white, and colours as
// they are in the file. In the page and in the worker.

// An ImageBitmap.
export async function readPicture(file) {
  let picture;
  try {
    picture = await createImageBitmap(file, { imageOrientation: 'from-image', colorSpaceConversion: 'none' });
  } catch {
    throw new Error(`${file.name} is no image that this browser can show: convert it to PNG or JPEG.`);
  }
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext('2d', { alpha: false });
  context.fillStyle = 'white';
  context.fillRect(0, 0, picture.width, picture.height);
  context.drawImage(picture, 0, 0);
  picture.close();
  return canvas.transferToImageBitmap();
}

// ImageData of an ImageBitmap, which it closes.
export function toPixels(picture) {
  const { width, height } = picture, context = new OffscreenCanvas(width, height).getContext('2d', { alpha: false });
  context.drawImage(picture, 0, 0);
  picture.close();
  return context.getImageData(0, 0, width, height);
}
