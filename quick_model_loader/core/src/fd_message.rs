//! Short messages with descriptors over a unix socket.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;

/// No message carries more descriptors.
pub const MAX_FDS: usize = 2;

/// The size of the control data, with room to spare.
const CONTROL_BYTES: usize = 64;

/// The kernel wants control data aligned like its header.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// The size of a descriptor.
const FD_BYTES: u32 = 4;

/// Control data for `count` descriptors; at most a handful.
fn fd_bytes(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX).saturating_mul(FD_BYTES)
}

/// Where the descriptors of a message lie.
///
/// # Safety
///
/// `message` points to a message within control data.
unsafe fn fds_of(message: *const libc::cmsghdr) -> *mut RawFd {
    // SAFETY: as the caller says.
    unsafe { libc::CMSG_DATA(message) }.cast()
}

/// Sends all of `bytes`, and with it copies of `fds`.
///
/// # Errors
///
/// The operating system's; `EMSGSIZE` for more than [`MAX_FDS`].
pub fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut control = Control([0; CONTROL_BYTES]);
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeroes are a valid, empty header.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = ptr::from_ref(&part).cast_mut();
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: pure arithmetic.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(fd_bytes(fds.len())) } as _;
        // SAFETY: the header has control data, large enough for one message of that many descriptors.
        let message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        // SAFETY: pure arithmetic.
        let length = unsafe { libc::CMSG_LEN(fd_bytes(fds.len())) } as _;
        // SAFETY: the first message lies in `control`, which is aligned for it.
        unsafe {
            message.write(libc::cmsghdr {
                cmsg_len: length,
                cmsg_level: libc::SOL_SOCKET,
                cmsg_type: libc::SCM_RIGHTS,
            });
        }
        // SAFETY: the data follow the header in `control`.
        let mut data = unsafe { fds_of(message) };
        for fd in fds {
            // SAFETY: room for this many descriptors was counted above; control data are not aligned for all types.
            unsafe { data.write_unaligned(fd.as_raw_fd()) };
            data = data.wrapping_add(1);
        }
    }
    // SAFETY: the header points to data that outlive the call. MSG_NOSIGNAL: a reader that is gone is an error.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Receives exactly as many bytes as fit into `bytes`, and the descriptors that came with them.
///
/// # Errors
///
/// The operating system's; `UnexpectedEof` if the other side closed.
pub fn receive(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
    let mut fds = Vec::new();
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match receive_some(socket, rest, &mut fds) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(fds)
}

fn receive_some(socket: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zeroes are a valid, empty header.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES as _;
    // SAFETY: the header points to memory that outlives the call and may be written to.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel filled the header in.
    let message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    // SAFETY: the first message is null or lies, complete, in `control`.
    let Some(found) = (unsafe { message.as_ref() }) else { return Ok(count) };
    if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
        // SAFETY: pure arithmetic.
        let prefix_bytes = unsafe { libc::CMSG_LEN(0) } as usize;
        let number = found.cmsg_len.saturating_sub(prefix_bytes) / size_of::<RawFd>();
        // SAFETY: the data follow the header in `control`.
        let mut data = unsafe { fds_of(message) };
        for _ in 0..number {
            // SAFETY: the kernel wrote this many descriptors, not aligned for all types.
            let fd = unsafe { data.read_unaligned() };
            // SAFETY: the descriptor is new and nobody else's.
            fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            data = data.wrapping_add(1);
        }
    }
    Ok(count)
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::{receive, send};
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn bytes_and_descriptors_arrive() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut files: Vec<File> = (0..2).map(|_| tempfile::tempfile().unwrap()).collect();
        for (number, file) in files.iter_mut().enumerate() {
            file.write_all(&[u8::try_from(number).unwrap(); 3]).unwrap();
        }
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send(&left, b"hello", &fds).unwrap();
        send(&left, b"world", &[]).unwrap();
        let mut bytes = [0; 10];
        let received = receive(&right, &mut bytes).unwrap();
        assert_eq!(&bytes, b"helloworld");
        for (number, fd) in received.into_iter().enumerate() {
            let mut file = File::from(fd);
            file.rewind().unwrap();
            let mut content = Vec::new();
            file.read_to_end(&mut content).unwrap();
            assert_eq!(content, [u8::try_from(number).unwrap(); 3]);
        }
        drop(left);
        assert!(receive(&right, &mut bytes).is_err());
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let (left, _right) = UnixStream::pair().unwrap();
        assert!(send(&left, b"x", &[left.as_fd(), left.as_fd(), left.as_fd()]).is_err());
    }
}
