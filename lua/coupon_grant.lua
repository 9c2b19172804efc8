#!lua
-- Puts an issued coupon into its user's hands where the two live in different partitions. Repeating it changes nothing.
--
-- KEYS 1 meta     hash    the books of the user's partition
--      2 outbox   stream
--      3 coupons  hash    the user's coupons
-- ARGV 1 '' (a test's clock, ms)  2 request id  3 user id  4 coupon id  5 issue number  6 issued at (ms)
-- Returns {'GRANTED', epoch, seq} or ALREADY_GRANTED | CLOSED_BOOKS
-- Emits coupon_granted
--@include lists
--@include partition
local meta, outbox, coupons = KEYS[1], KEYS[2], KEYS[3]
local now, request_id, user_id, coupon_id, issue_no, issued_at = current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end
if redis.call('HEXISTS', coupons, coupon_id) == 1 then return { 'ALREADY_GRANTED' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'coupon_granted', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'coupon', coupon_id, 'user', user_id, 'issue_no', issue_no, 'issued_at', issued_at)
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', coupons, coupon_id, issue_no .. '|' .. issued_at .. '|A||')
return { 'GRANTED', epoch, seq }
