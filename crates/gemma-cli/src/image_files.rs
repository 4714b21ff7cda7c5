//! Which images are meant: files, folders, patterns with `*` and `?`, and the images that are built in.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use paligemma::Image;

use crate::{interrupt, output};

/// All images that are built in; with a name behind it, one of them.
const DEMO: &str = "demo:";

/// What is said where nothing else is an image.
const NAME_ONE: &str = "name a PNG, JPEG or WebP file, a folder of them, a pattern such as 'shots/*.png', or demo: for the \
                        images that are built in";

/// Opens an image: a file, or one that is built in, such as `demo:shapes1.png`.
///
/// # Errors
/// When there is none of that name, or it cannot be read.
pub(crate) fn open(file: &Path) -> Result<Image> {
    let Some(name) = file.to_str().and_then(|file| file.strip_prefix(DEMO)).filter(|_| !file.exists()) else {
        let is_pipe = fs::metadata(file).is_ok_and(|found| !found.is_file());
        return Ok(if is_pipe { interrupt::while_waiting(|| Image::open(file)) } else { Image::open(file) }?);
    };
    let mut images = paligemma::demo_images()?;
    match images.iter().position(|(known, _)| *known == name) {
        Some(index) => Ok(images.swap_remove(index).1),
        None => {
            let names: Vec<String> = images.iter().map(|(known, _)| format!("{DEMO}{known}")).collect();
            bail!("there is no built-in image {DEMO}{name}; there are {}", names.join(", "))
        }
    }
}

/// Takes what a question or a thing to look for is from the front of the arguments, where it was not given by a flag: the
/// first that is no file, folder or pattern. `flag` names what else gives it.
///
/// # Errors
/// When the first argument is a file, or was meant as one, or no argument is left for images.
pub(crate) fn take_text(names: &mut Vec<OsString>, what: &str, flag: &str) -> Result<String> {
    let Some(first) = names.first() else { bail!("no image is named; {NAME_ONE}") };
    let Some(first) = first.to_str() else {
        bail!("{} is not UTF-8, as {what} has to be; give it first, or with {flag}", shown(Path::new(first)));
    };
    let path = Path::new(first);
    if first.trim().is_empty() {
        bail!("{what} is empty; give some text");
    }
    if path.exists() || first.starts_with(DEMO) || is_pattern(first) {
        bail!("{first} is an image or a folder; give {what} in front of it, or with {flag}");
    }
    if ends_like_an_image(path) {
        bail!("there is no file {first}; give {what} first, or with {flag}, and then images that exist");
    }
    if names.len() == 1 {
        bail!("{first:?} is taken for {what}, and no image is named; {NAME_ONE}");
    }
    let text = first.to_owned();
    names.remove(0);
    Ok(text)
}

/// A file's name as text, which no other file has: bytes that are not UTF-8 are spelt `\xFF`.
pub(crate) fn shown(file: &Path) -> String {
    let mut text = String::new();
    for chunk in file.as_os_str().as_encoded_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02X}")));
    }
    text
}

/// A question may end with a question mark, so that a pattern with nothing but those must look like a path.
fn is_pattern(name: &str) -> bool {
    let is_path = name.contains(['.', '/', '\\']) && name.contains('?');
    !name.contains(char::is_whitespace) && (name.contains('*') || is_path)
}

/// Endings of the files that are taken from a folder.
const ENDINGS: [&str; 11] = ["png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff"];

/// The files that are meant, each once, in the order of the arguments; those of a folder or a pattern by name.
///
/// # Errors
/// A folder or pattern without an image.
pub(crate) fn find(names: &[OsString]) -> Result<Vec<PathBuf>> {
    let (mut found, mut known) = (Vec::new(), BTreeSet::new());
    for name in names {
        let path = Path::new(name);
        let name = &*name.to_string_lossy();
        let files = if name == DEMO && !path.exists() {
            paligemma::demo_images()?.iter().map(|(name, _)| PathBuf::from(format!("{DEMO}{name}"))).collect()
        } else if path.is_dir() {
            let listed = listed(path)?;
            if let Some(left_out) = left_out(&listed) {
                output::complain(format_args!("{name}: {left_out}"));
            }
            let images = listed.into_iter().filter(|file| is_image(file)).collect();
            some(images, name, "the folder holds no image (PNG, JPEG, WebP, GIF, BMP or TIFF)")?
        } else if !path.exists() && name.contains(['*', '?']) {
            some(matching(path)?, name, "no file matches the pattern")?
        } else {
            // whether it is there is found when its turn comes: one bad file does not stop the others
            vec![path.to_owned()]
        };
        found.extend(files.into_iter().filter(|file| known.insert(file.clone())));
    }
    Ok(found)
}

fn some(files: Vec<PathBuf>, name: &str, otherwise: &str) -> Result<Vec<PathBuf>> {
    if files.is_empty() { bail!("{name}: {otherwise}") } else { Ok(files) }
}

/// What the names of drawings end in, which `--draw` makes of images.
const DRAWN: [&str; 2] = [".detect.png", ".segment.png"];

/// Is this a file of a folder that is meant? Hidden files are not, among them the `._IMG_1.JPG` that macOS leaves beside
/// each file on other systems' disks and that holds no image. Nor are drawings of a run before.
fn is_image(file: &Path) -> bool {
    let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let drawn = DRAWN.iter().any(|end| name.ends_with(end));
    !is_hidden(file) && !drawn && file.is_file() && ends_like_an_image(file)
}

fn is_hidden(file: &Path) -> bool {
    file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn ends_like_an_image(file: &Path) -> bool {
    ENDINGS.contains(&ending(file).as_str())
}

fn ending(file: &Path) -> String {
    file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase()
}

/// Endings of images that no decoder of this program reads.
const FOREIGN: [&str; 6] = ["heic", "heif", "hif", "avif", "jxl", "jp2"];

/// What is said of files of a folder that somebody may take for images of it and that are left out.
fn left_out(files: &[PathBuf]) -> Option<String> {
    let shown = || files.iter().filter(|file| !is_hidden(file));
    let foreign: Vec<&PathBuf> = shown().filter(|file| FOREIGN.contains(&ending(file).as_str())).collect();
    let dangling: Vec<&PathBuf> = shown().filter(|file| ends_like_an_image(file) && !file.exists()).collect();
    let told = |files: &[&PathBuf], what: &str, advice: &str| {
        let first = files.first()?.file_name()?.to_string_lossy();
        let others = if files.len() > 1 { format!(" and {} others", files.len() - 1) } else { String::new() };
        Some(format!("{first}{others} left out: {what}; {advice}"))
    };
    let parts = [
        told(&foreign, "HEIC, AVIF, JPEG XL and JPEG 2000 are not read", "convert them to JPEG or PNG first"),
        told(&dangling, "a link to a file that is not there", "mend or remove it"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// What a folder holds, by name.
fn listed(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}

/// The files whose path matches, part by part; hidden files only where the pattern says so.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for part in pattern {
        let part = part.to_string_lossy();
        if !part.contains(['*', '?']) {
            found.iter_mut().for_each(|path| path.push(&*part));
            continue;
        }
        let mut deeper = Vec::new();
        for folder in found {
            let place = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
            if !place.is_dir() {
                continue;
            }
            for entry in listed(place)? {
                let Some(name) = entry.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
                if name.starts_with('.') == part.starts_with('.') && matches(&part, &name) {
                    deeper.push(folder.join(name));
                }
            }
        }
        found = deeper;
    }
    found.retain(|path| path.is_file());
    Ok(found)
}

/// Whether a name matches a pattern: `*` stands for any letters, `?` for one.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // where to go on when letters after the last star do not fit: the star takes one letter more
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p, n));
            p += 1;
        } else if p < pattern.len() && (pattern[p] == '?' || pattern[p] == name[n]) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, n) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|letter| *letter == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, name) in
            [("*", ""), ("*.png", "a.png"), ("a?c", "abc"), ("*a*b", "xaxxab"), ("a**b", "ab"), ("é?", "éä")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("?", ""), ("*.png", "a.jpg"), ("a?c", "ac"), ("*a*b", "xaxxba"), ("", "a")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        // a pattern of many stars takes no longer than name times pattern
        assert!(!matches(&"*a".repeat(200), &"a".repeat(199)));
    }

    #[test]
    fn the_images_that_are_built_in_have_names_of_their_own() {
        let all = find(&[DEMO.into()]).expect("images");
        assert_eq!(all.len(), 3);
        for file in all {
            assert_eq!(open(&file).expect("an image").width(), 224);
        }
        let error = open(Path::new("demo:cat.png")).expect_err("none").to_string();
        assert!(error.contains("demo:shapes1.png"), "{error}");
    }

    #[test]
    fn the_thing_to_look_for_is_the_first_word_that_is_no_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("a.png").display().to_string();
        fs::write(&file, "").expect("written");
        let take = |names: &[&str]| {
            let mut names: Vec<OsString> = names.iter().map(OsString::from).collect();
            take_text(&mut names, "what to look for", "--what").map(|text| (text, names))
        };
        for text in ["red circle", "cat", "is it red?", "why?"] {
            assert_eq!(take(&[text, &file]).expect(text), (text.to_owned(), vec![OsString::from(&file)]));
        }
        for (names, said) in [
            (&[][..], "no image is named"),
            (&["red circle"], "is taken for what to look for"),
            (&["b.png", &file], "there is no file b.png"),
            (&[&file, &file], "--what"),
            (&["*.png", &file], "--what"),
            (&["demo:"], "--what"),
        ] {
            let error = take(names).expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn folders_and_patterns_give_their_images_once_and_in_order() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("sub")).expect("made");
        for name in ["b.png", "a.JPG", "c.webp", "e.jfif", "F.TIF", "notes.txt", ".hidden.png", "._a.JPG", "sub/d.png"]
        {
            fs::write(at(name), "").expect("written");
        }
        let name = |name: &str| at(name).display().to_string();
        let find = |names: &[String]| {
            let names: Vec<OsString> = names.iter().map(OsString::from).collect();
            find(&names).map(|files| files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>())
        };
        let in_folder: Vec<String> = find(&[name("")]).expect("images");
        assert_eq!(in_folder.len(), 5, "{in_folder:?}");
        let found: Vec<String> = find(&[name("c.webp"), name("*.png"), name("b.png")]).expect("images");
        assert_eq!(found, [name("c.webp"), name("b.png")]);
        assert_eq!(find(&[name("s*/?.png")]).expect("images"), [name("sub/d.png")]);
        assert_eq!(left_out(&listed(folder.path()).expect("a folder")), None);
        for name in ["a.HEIC", "b.avif", ".c.heic"] {
            fs::write(at(name), "").expect("written");
        }
        let said = left_out(&listed(folder.path()).expect("a folder")).expect("said");
        assert!(said.starts_with("a.HEIC and 1 others left out"), "{said}");
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStringExt;
            std::os::unix::fs::symlink("nowhere", at("d.png")).expect("linked");
            let said = left_out(&listed(folder.path()).expect("a folder")).expect("said");
            assert!(said.contains("d.png left out: a link"), "{said}");
            let file = PathBuf::from(OsString::from_vec(b"\xFF.png".to_vec()));
            let found = super::find(&[file.clone().into()]).expect("found when its turn comes");
            assert_eq!(found, std::slice::from_ref(&file));
            assert_eq!(shown(&file), r"\xFF.png");
        }
        fs::create_dir(at("empty")).expect("made");
        for (wrong, said) in [("*.gif", "no file matches"), ("empty", "holds no image")] {
            let error = find(&[name(wrong)]).expect_err(wrong).to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
